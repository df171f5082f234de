// Peers of a mesh that the fuzzer plays: connections, and frames that it may change.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "input.h"

namespace hearth::fuzz {

inline constexpr uint32_t kMagic = 0x48525448;

// The lane's own sockets by rank, and the peers' ends of them.
struct Ends {
  std::vector<int> own, theirs;
};

inline Ends connect(size_t ranks, size_t rank) {
  Ends ends{std::vector<int>(ranks, -1), {}};
  for (size_t r = 0; r < ranks; ++r) {
    if (r == rank) continue;
    int pair[2];
    demand(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "there are descriptors left");
    ends.own[r] = pair[0];
    ends.theirs.push_back(pair[1]);
  }
  return ends;
}

// Appends one frame, changed where the input says so; whether it is still what is due.
inline bool add_frame(Input& in, std::vector<uint8_t>& out, uint32_t step, uint32_t index,
                      size_t bytes) {
  uint32_t header[4] = {kMagic, step, index, static_cast<uint32_t>(bytes)};
  bool good = true;
  if (in.upto(7) == 0) {
    const uint32_t change = static_cast<uint32_t>(in.number(255));
    header[in.upto(3)] ^= change;
    good = change == 0;
  }
  const auto* at = reinterpret_cast<const uint8_t*>(header);
  out.insert(out.end(), at, at + sizeof header);
  const std::vector<uint8_t> body = in.bytes(bytes);
  out.insert(out.end(), body.begin(), body.end());
  if (in.upto(15) == 0 && !out.empty()) {  // cut off, or with something behind it
    if (in.upto(1)) {
      out.resize(out.size() - 1 - in.upto(std::min<size_t>(out.size() - 1, 64)));
      good = false;
    } else {
      out.push_back(in.take<uint8_t>());
    }
  }
  return good;
}

// What does not fit the socket's buffer is not sent: nobody reads meanwhile.
inline bool sent_all(int socket, const std::vector<uint8_t>& bytes) {
  const ssize_t sent = send(socket, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent == static_cast<ssize_t>(bytes.size());
}

inline int lowest_free_descriptor() {
  const int found = dup(0);
  close(found);
  return found;
}

}  // namespace hearth::fuzz
