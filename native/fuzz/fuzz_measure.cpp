// A rank that measures its links among peers that send any numbers, or frames that are not due. It
// ends with costs within limits exactly when every frame came as it should; it never outlasts its
// deadline; and whatever happens, every descriptor is closed.
#include <chrono>
#include <stdexcept>

#include "hearth/mesh.h"
#include "mesh_peers.h"

using namespace hearth;

namespace {

constexpr double kDeadlineSeconds = 0.002;
constexpr auto kMostSeconds = std::chrono::seconds(2);
// As in mesh_costs.cpp: the numbers before the first large rounds, and these. A number follows
// each, how long it took: if that is not long in all, the measuring goes on. The last ones are of
// the latency once more, and of the adding.
constexpr uint32_t kNumbers = 11, kRounds = 3, kLastNumbers = 11;
constexpr size_t kRoundBytes = 16 << 10;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const int free_before = fuzz::lowest_free_descriptor();
  {
    const size_t ranks = 2 + in.upto(2), rank = in.upto(ranks - 1);
    const WireType wire = static_cast<WireType>(in.upto(2));
    const MeshCipher cipher = fuzz::cipher(in);
    fuzz::Ends ends = fuzz::connect(ranks, rank);
    bool good = true;
    for (size_t r = 0, peer_rank = 0; r < ends.theirs.size(); ++r, ++peer_rank) {
      const int peer = ends.theirs[r];
      if (peer_rank == rank) ++peer_rank;
      test::FrameWriter writer(cipher, peer_rank, rank);
      std::vector<uint8_t> out;
      bool whole = true;
      uint32_t index = 0;
      for (; index < kNumbers && whole; ++index)
        whole = fuzz::add_frame(in, out, writer, 0, index, sizeof(uint64_t));
      for (uint32_t round = 0; round < kRounds && whole; ++round) {
        const uint32_t bytes = static_cast<uint32_t>(kRoundBytes / (ranks - 1));
        const auto frame = writer.frame(0, index++, std::vector<uint8_t>(bytes));
        out.insert(out.end(), frame.begin(), frame.end());
        whole = fuzz::add_frame(in, out, writer, 0, index++, sizeof(uint64_t));
      }
      for (uint32_t last = 0; last < kLastNumbers && whole; ++last)
        whole = fuzz::add_frame(in, out, writer, 0, index++, sizeof(uint64_t));
      good = fuzz::sent_all(peer, out) && whole && good;
      if (in.upto(3) != 0) shut_down_socket_for_sending(peer);
    }
    const auto start = std::chrono::steady_clock::now();
    bool done = false;
    try {
      MeshLane lane(MeshConfig{.rank = rank,
                               .sockets = ends.own,
                               .wire = wire,
                               .deadline_seconds = 1.0,
                               .direct_bytes = 0,
                               .cipher = cipher,
                               .keys = test::keys(ranks, rank)});
      const LinkCosts costs = lane.measure(kDeadlineSeconds);
      done = true;
      fuzz::demand(costs == bounded(costs), "costs are within limits");
      fuzz::demand(lane.direct_bytes() == direct_bytes(ranks, wire, costs),
                   "the choice follows from the costs");
    } catch (const LaneError& error) {
      fuzz::demand(error.rank() < ranks && error.rank() != rank, "the error names a peer");
    }
    fuzz::demand(!done || good, "a frame that is not due ends the measuring");
    fuzz::demand(std::chrono::steady_clock::now() - start < kMostSeconds,
                 "measuring ends by its deadline");
    for (int peer : ends.theirs) close_socket(peer);
  }
  fuzz::demand(fuzz::lowest_free_descriptor() == free_before, "every descriptor is closed");
  return 0;
}
