// Peers of a mesh that the fuzzer plays: connections, and frames that it may change.
#pragma once

#ifndef _WIN32
#include <unistd.h>
#endif

#include "../tests/mesh_frames.h"
#include "../tests/sockets.h"
#include "input.h"

namespace hearth::fuzz {

// The lane's own sockets by rank, and the peers' ends of them.
struct Ends {
  std::vector<int> own, theirs;
};

inline Ends connect(size_t ranks, size_t rank) {
  Ends ends{std::vector<int>(ranks, -1), {}};
  for (size_t r = 0; r < ranks; ++r) {
    if (r == rank) continue;
    const auto [own, theirs] = test::pair();
    ends.own[r] = own;
    ends.theirs.push_back(theirs);
  }
  return ends;
}

// Any of the ciphers there are.
inline MeshCipher cipher(Input& in) {
  static const std::vector<MeshCipher> all = test::ciphers();
  return all[in.upto(all.size() - 1)];
}

// Appends one frame, changed where the input says so; whether it is still what is due.
inline bool add_frame(Input& in, std::vector<uint8_t>& out, test::FrameWriter& writer,
                      uint32_t step, uint32_t index, size_t bytes) {
  std::vector<uint8_t> frame = writer.frame(step, index, in.bytes(bytes));
  bool good = true;
  if (in.upto(7) == 0) {  // damaged, anywhere
    const uint8_t change = in.take<uint8_t>();
    frame[in.upto(frame.size() - 1)] ^= change;
    good = change == 0;
  }
  switch (in.upto(31)) {
    case 1:  // sealed for a place that it does not have
      writer.frame(step, index, {});
      break;
    case 2:  // the one before it, again
      if (out.size() >= frame.size()) {
        std::copy(out.end() - static_cast<ptrdiff_t>(frame.size()), out.end(), frame.begin());
        good = false;
      }
      break;
    case 3:  // cut off
      frame.resize(frame.size() - 1 - in.upto(std::min<size_t>(frame.size() - 1, 64)));
      good = false;
      break;
    case 4:  // with something behind it
      frame.push_back(in.take<uint8_t>());
      break;
    default:
      break;
  }
  out.insert(out.end(), frame.begin(), frame.end());
  return good;
}

// What does not fit the socket's buffer is not sent: nobody reads meanwhile.
inline bool sent_all(int socket, const std::vector<uint8_t>& bytes) {
  return send_now(socket, bytes.data(), bytes.size()) == static_cast<long>(bytes.size());
}

// Grows with every descriptor that is not closed. (Windows' handles have no order: 0 there.)
inline int lowest_free_descriptor() {
#ifdef _WIN32
  return 0;
#else
  const int found = dup(0);
  ::close(found);
  return found;
#endif
}

}  // namespace hearth::fuzz
