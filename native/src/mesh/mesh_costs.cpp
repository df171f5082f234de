#include "hearth/mesh_costs.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "formats/names.h"
#include "hearth/mesh.h"
#include "hearth/types.h"
#include "mesh/mesh_exchange.h"
#include "platform/stopwatch.h"

namespace hearth {
namespace {

constexpr uint64_t kMostLatencyNs = 10'000'000'000;
constexpr uint64_t kMostPs = 1'000'000'000;  // a byte in a millisecond

// Bytes that a rank sends in one round, to all others together. Smaller rounds let TCP's window
// grow and drain a shaper's burst allowance, of up to some MiB. The fastest round of a size counts,
// for slower ones were delayed by something else; but not the first one, which the allowance may
// speed.
constexpr size_t kRoundBytes[] = {16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20};
constexpr size_t kRounds = 3;
// No larger rounds once they took this long in all: a slow link is measured well enough by then.
constexpr uint64_t kLongRoundsNs = 50'000'000;
constexpr size_t kLatencyRounds = 9;
constexpr size_t kAddNumbers = 16384;
constexpr size_t kAddRounds = 5;

constexpr Named<WireType> kWireTypes[] = {
    {"f32", WireType::f32}, {"f16", WireType::f16}, {"q80", WireType::q80}};

}  // namespace

WireType parse_wire_type(std::string_view name) {
  return parse_name("sync type", kWireTypes, name);
}

LinkCosts bounded(LinkCosts costs) {
  return {.latency_ns = std::clamp<uint64_t>(costs.latency_ns, 1, kMostLatencyNs),
          .byte_ps = std::clamp<uint64_t>(costs.byte_ps, 1, kMostPs),
          .add_ps = std::clamp<uint64_t>(costs.add_ps, 1, kMostPs)};
}

uint64_t direct_bytes(size_t ranks, WireType wire, LinkCosts costs) {
  if (ranks == 2 && wire != WireType::f32) return std::numeric_limits<uint64_t>::max();
  costs = bounded(costs);
  // Where both ways cost the same. Below 2^64: 10^13 ps x 2^10, and 2^10 x 2^10 x 2 x 10^9 ps.
  const uint64_t n = ranks;
  const uint64_t saved = (n - 1) * ((n - 2) * costs.byte_ps + (n - 1) * costs.add_ps);
  return costs.latency_ns * 1000 * n / saved;
}

// An all-reduce of one integer by max. Its time is also the latency of a small message.
uint64_t MeshLane::all_reduce_max(uint64_t own) {
  std::vector<uint64_t> theirs(ranks());
  std::vector<Outgoing> out(ranks(), {reinterpret_cast<const uint8_t*>(&own), sizeof own});
  std::vector<Incoming> in(ranks());
  for (size_t r = 0; r < ranks(); ++r) in[r] = {reinterpret_cast<uint8_t*>(&theirs[r]), sizeof own};
  exchange(out, in);
  ++index_;
  theirs[config_.rank] = own;
  return *std::max_element(theirs.begin(), theirs.end());
}

LinkCosts MeshLane::measure_links(double seconds) {
  const Stopwatch since_start;
  const auto limit = [&] { patience_ = std::max(0.0, seconds - since_start.seconds()); };
  begin(0);  // steps count from 1
  LinkCosts costs{};
  const auto shared = [&](uint64_t own) {
    limit();
    return all_reduce_max(own);
  };

  // The median counts: a rank that is delayed makes one round too long for all, and its next one
  // too short.
  const auto latency = [&] {
    std::array<uint64_t, kLatencyRounds> times;
    for (uint64_t& time : times) {
      const Stopwatch watch;
      shared(0);
      time = watch.nanoseconds();
    }
    std::nth_element(times.begin(), times.begin() + kLatencyRounds / 2, times.end());
    return shared(times[kLatencyRounds / 2]);
  };
  shared(0);  // ranks arrive at different times: this puts them in step
  costs.latency_ns = latency();

  uint64_t total = 0, fastest = 0, moved = 1;
  for (size_t bytes : kRoundBytes) {
    const size_t size = std::max<size_t>(bytes / (ranks() - 1), sizeof(uint64_t));
    auto& own = outgoing_[config_.rank];
    own.assign(size, 0);
    std::vector<Outgoing> out(ranks(), {own.data(), size});
    std::vector<Incoming> in(ranks());
    for (size_t r = 0; r < ranks(); ++r) {
      if (r == config_.rank) continue;
      incoming_[r].resize(size);
      in[r] = {incoming_[r].data(), size};
    }
    uint64_t best = kMostLatencyNs;
    for (size_t round = 0; round < kRounds; ++round) {
      limit();
      const Stopwatch watch;
      exchange(out, in);
      ++index_;
      const uint64_t longest = std::min(shared(watch.nanoseconds()), kMostLatencyNs);
      if (round > 0) best = std::min(best, longest);
      total += longest;
    }
    fastest = best, moved = size * (ranks() - 1);
    if (total > kLongRoundsNs) break;
  }

  // Again, for what still lay in the network's queues at first, such as weights, is gone by now.
  costs.latency_ns = std::min(costs.latency_ns, latency());
  // No link is more than twice as fast as was seen: what is left of a time less a latency that
  // varies may be anything.
  const uint64_t moving = std::max(fastest - std::min(fastest, costs.latency_ns), fastest / 2);
  costs.byte_ps = moving * 1000 / moved;

  std::vector<float> sum(kAddNumbers), part(kAddNumbers);
  std::vector<uint8_t> encoded(wire_bytes(kAddNumbers));
  encode(part.data(), kAddNumbers, encoded.data());
  uint64_t adding = kMostLatencyNs;
  for (size_t round = 0; round < kAddRounds; ++round) {
    const Stopwatch watch;
    decode(encoded.data(), kAddNumbers, sum.data(), true);
    adding = std::min(adding, watch.nanoseconds());
  }
  costs.add_ps = shared(adding * 1000 / encoded.size());

  patience_ = config_.deadline_seconds;
  costs = bounded(costs);
  config_.direct_bytes = hearth::direct_bytes(ranks(), config_.wire, costs);
  return costs;
}

}  // namespace hearth
