// The mesh lane: every rank has a TCP connection to every other, and the core drives them itself.
//
// The connections are already authenticated (services/common/mesh.py); here they only carry frames.
// A frame is a header of four u32 (magic, step, index, bytes), little-endian, and then its bytes.
// They are encrypted and authenticated, or only checked (mesh_cipher.h). Both sides know the shape
// of the sync that is due, so a header is compared, never trusted.
//
// Two ways to all-reduce, chosen by their cost (mesh_costs.h), the same on all ranks for a shape.
//   direct    every rank sends its whole part to every other: one latency, (n - 1) parts sent
//   scattered reduce-scatter, then all-gather: two latencies, 2 (n - 1) / n parts sent
// In both, parts are added in rank order, and all ranks, including the sender, use the values
// rounded for the wire. So all ranks end with the same bits. Two ranks that do not round have
// faster ways with the same result, which send from and receive to the elements in place.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "hearth/kernels.h"
#include "hearth/lane.h"
#include "hearth/lane_error.h"
#include "hearth/mesh_cipher.h"
#include "hearth/mesh_costs.h"
#include "hearth/mesh_sockets.h"

namespace hearth {

struct MeshLink;
class Transfer;

struct MeshConfig {
  size_t rank;
  std::vector<int> sockets;  // of each rank; -1 at this rank's own place. Owned by the lane.
  WireType wire;
  double deadline_seconds;  // for one sync
  // Parts of at most this many bytes go direct, until it is measured. The same on all ranks.
  uint64_t direct_bytes;
  MeshCipher cipher;  // the same on all ranks
  // Of the connection to each rank; what stands at this rank's own place is not used.
  std::vector<MeshKeys> keys;
  // Added to ranks in errors: the nodes of the stages before.
  size_t first_rank = 0;
};

class MeshLane : public Lane {
 public:
  // Throws std::invalid_argument for sockets or keys that cannot be, std::system_error when sockets
  // fail, std::runtime_error without the cipher. The sockets are the lane's from here on: they are
  // closed then too.
  explicit MeshLane(MeshConfig config);
  ~MeshLane() override;
  MeshLane(const MeshLane&) = delete;
  MeshLane& operator=(const MeshLane&) = delete;

  // Measures the links, with all ranks at once, and chooses by that how syncs travel. Every rank
  // has the same costs in the end, the worst that any of them saw. Before the first `begin`. Sends
  // at most 16 MiB; throws what a sync throws, when a rank is lost or `seconds` are over.
  LinkCosts measure(double seconds);
  uint64_t direct_bytes() const { return config_.direct_bytes; }

  // The next syncs are those of step `step`, counted from 0.
  void begin(uint32_t step);
  void all_reduce(float* x, size_t rows, size_t columns, bool exact) override;
  using Lane::all_reduce;

  // Ends a sync that is under way, from any thread: it throws within a tenth of a second.
  void abort() { aborted_.store(true); }

  // Ends the connections, from any thread: a sync that is under way throws LaneError, and later
  // ones std::logic_error. Descriptors are closed once no sync uses them.
  void close();

  uint64_t sent_bytes() const { return sent_; }
  uint64_t received_bytes() const { return received_; }

 private:
  using Clock = std::chrono::steady_clock;
  using Outgoing = std::pair<const uint8_t*, size_t>;
  using Incoming = std::pair<uint8_t*, size_t>;
  // Of one exchange: since when it runs, when something moved last, and the longest time between.
  struct Wait {
    Clock::time_point start, moved_at;
    Clock::duration longest;
  };

  size_t ranks() const { return sockets_.all.size(); }
  // A rank as errors name it.
  size_t named(size_t rank) const { return config_.first_rank + rank; }
  // Bytes of `elements` on the wire; elements % 32 == 0 for q80.
  size_t wire_bytes(size_t elements) const;
  void encode(const float* x, size_t elements, uint8_t* out);
  // x = or x += what is encoded.
  void decode(const uint8_t* in, size_t elements, float* x, bool add);
  // Where rank `rank`'s segment of `elements` begins, on block borders.
  size_t segment(size_t elements, size_t rank) const;
  void reduce(float* x, size_t elements);
  LinkCosts measure_links(double seconds);
  // The largest of all ranks' values.
  uint64_t all_reduce_max(uint64_t own);

  void direct(float* x, size_t elements);
  void scattered(float* x, size_t elements);
  // The same between two ranks, in f32 (mesh_pair.cpp).
  void pair_direct(float* x, size_t elements);
  void pair_scattered(float* x, size_t elements);

  // Frames of the sync that is due; in: see Transfer.
  Transfer transfer(size_t rank, Outgoing out, Incoming in, size_t window);
  // Sends `out[r]` to and fills `in[r]` from every other rank r, all at once.
  void exchange(const std::vector<Outgoing>& out, const std::vector<Incoming>& in);
  static Wait begin_wait();
  static void note_move(Wait& wait);
  // Spins or polls until bytes may move. Throws when the sync is aborted or out of time.
  void wait_to_move(const Wait& wait, std::span<const Transfer> transfers);
  // After an exchange: see spin_.
  void adapt(const Wait& wait);

  MeshConfig config_;
  WireType wire_;  // of the sync under way
  MeshSockets sockets_;
  std::vector<std::unique_ptr<MeshLink>> links_;  // nullptr at one's own place
  const Kernels& kernels_;
  double patience_;  // seconds: the deadline of exchanges
  uint32_t step_ = 0, index_ = 0;
  uint64_t sent_ = 0, received_ = 0;
  std::atomic<bool> aborted_{false};
  std::vector<std::vector<uint8_t>> outgoing_, incoming_;
  std::vector<HalfSums> sums_;  // output of quantize that is not used here
  // How long to spin before polling: over loopback or a switch a sync is done sooner than a thread
  // wakes up. At most kMeshSpin, and less where spinning has not helped.
  static constexpr Clock::duration kMeshSpin = std::chrono::microseconds(50);
  Clock::duration spin_ = kMeshSpin;
};

}  // namespace hearth
