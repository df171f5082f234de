// A rank among peers that send any bytes: raw, or frames that are damaged, repeated, cut off. A
// sync ends with success exactly when every frame that is due came as it should; it never outlasts
// its deadline; and whatever happens, every descriptor is closed.
#include <chrono>
#include <stdexcept>

#include "hearth/mesh.h"
#include "mesh_peers.h"

using namespace hearth;

namespace {

constexpr double kDeadlineSeconds = 0.001;
constexpr auto kMostSeconds = std::chrono::seconds(2);

size_t wire_size(WireType wire, size_t numbers) {
  if (wire == WireType::f32) return numbers * 4;
  return wire == WireType::f16 ? numbers * 2 : numbers / kBlock * 36;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const int free_before = fuzz::lowest_free_descriptor();
  {
    const size_t ranks = 2 + in.upto(2), rank = in.upto(ranks - 1);
    const WireType wire = static_cast<WireType>(in.upto(2));
    const MeshCipher cipher = fuzz::cipher(in);
    const size_t rows = 1 + in.upto(2);
    const size_t columns = in.upto(7) == 0 ? in.upto(200) : kBlock * (1 + in.upto(7));
    const size_t direct_bytes = in.upto(1) ? ~size_t{0} : in.number(255);
    const uint32_t step = in.take<uint16_t>();
    const size_t syncs = 1 + in.upto(2);
    const bool raw = in.upto(3) == 0;
    const bool closes = in.upto(7) != 0;  // else the deadline ends it
    const size_t numbers = rows * columns;
    // Frames of direct syncs: in the other algorithm they have two sizes, so there only bytes go.
    const bool direct = wire_size(wire, numbers) <= direct_bytes;

    fuzz::Ends ends = fuzz::connect(ranks, rank);
    bool good = !raw && direct;
    for (size_t r = 0, peer_rank = 0; r < ends.theirs.size(); ++r, ++peer_rank) {
      const int peer = ends.theirs[r];
      if (peer_rank == rank) ++peer_rank;
      test::FrameWriter writer(cipher, peer_rank, rank);
      std::vector<uint8_t> out;
      bool whole = true;
      if (raw) {
        out = in.bytes(in.upto(2048));
      } else {
        for (uint32_t i = 0; i < syncs && whole; ++i)
          whole = fuzz::add_frame(in, out, writer, step, i, wire_size(wire, numbers)) && whole;
        good = good && whole;
      }
      good = fuzz::sent_all(peer, out) && good;
      if (closes) shut_down_socket_for_sending(peer);
    }
    std::vector<float> x = in.reals(numbers);
    const auto start = std::chrono::steady_clock::now();
    bool done = false;
    const size_t wrong = in.upto(31);  // now and then a lane that cannot be
    try {
      MeshLane lane(MeshConfig{.rank = wrong == 1 ? ranks : rank,
                               .sockets = ends.own,
                               .wire = wire,
                               .deadline_seconds = wrong == 2 ? 0.0 : kDeadlineSeconds,
                               .direct_bytes = direct_bytes,
                               .cipher = cipher,
                               .keys = test::keys(ranks, rank)});
      fuzz::demand(wrong != 1 && wrong != 2, "a lane that cannot be is refused");
      lane.begin(step);
      for (size_t i = 0; i < syncs; ++i) lane.all_reduce(x.data(), rows, columns);
      done = true;
    } catch (const LaneError& error) {
      fuzz::demand(error.rank() < ranks && error.rank() != rank, "the error names a peer");
    } catch (const std::invalid_argument& error) {
      fuzz::demand(error.what()[0] != '\0', "an error has words");
      fuzz::demand(wrong == 1 || wrong == 2 || numbers == 0 ||
                       (wire == WireType::q80 && numbers % kBlock != 0),
                   "a sound sync is not refused");
    }
    // (Raw bytes are a frame now and then: the fuzzer learns what is compared.)
    fuzz::demand(!done || good || raw || !direct, "a frame that is not due ends the sync");
    fuzz::demand(std::chrono::steady_clock::now() - start < kMostSeconds,
                 "a sync ends by its deadline");
    for (int peer : ends.theirs) close_socket(peer);
  }
  fuzz::demand(fuzz::lowest_free_descriptor() == free_before, "every descriptor is closed");
  return 0;
}
