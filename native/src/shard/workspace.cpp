#include "shard/workspace.h"

#include <algorithm>
#include <vector>

namespace hearth {
namespace {

constexpr size_t kLine = 64;  // bytes of a cache line

size_t whole_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// Bytes of the pieces of one buffer, which lie one after another.
struct Pieces {
  size_t x = 0, q = 0, scales = 0, sums = 0;

  size_t total() const { return x + q + scales + sums; }
};

Pieces pieces_of(const BufferPlan& plan, size_t rows) {
  const size_t count = rows * plan.columns;
  if (!plan.quantized) return {.x = whole_lines(count * sizeof(float))};
  return {.x = whole_lines(count * sizeof(float)),
          .q = whole_lines(count),
          .scales = whole_lines(count / kBlock * sizeof(float)),
          .sums = whole_lines(count / kBlock * sizeof(HalfSums))};
}

struct Range {
  size_t begin, end;
};

// The lowest place for `size` bytes that overlaps none of `taken`.
size_t first_fit(std::vector<Range> taken, size_t size) {
  std::sort(taken.begin(), taken.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  size_t at = 0;
  for (const Range& each : taken) {
    if (at + size <= each.begin) break;
    at = std::max(at, each.end);
  }
  return at;
}

}  // namespace

void Workspace::resize(const PerBuffer<BufferPlan>& plan, size_t rows, size_t scratch,
                       size_t threads) {
  PerBuffer<Pieces> pieces;
  PerBuffer<Range> places;
  used_ = 0;
  for (size_t i = 0; i < kBuffers; ++i) {
    const auto id = static_cast<BufferId>(i);
    pieces[id] = id == BufferId::scratch
                     ? Pieces{.x = threads * whole_lines(scratch * sizeof(float))}
                     : pieces_of(plan[id], rows);
    std::vector<Range> taken;
    for (size_t j = 0; j < i; ++j) {
      const auto other = static_cast<BufferId>(j);
      if (plan[id].apart_from.contains(other)) taken.push_back(places[other]);
    }
    const size_t size = pieces[id].total();
    const size_t begin = first_fit(std::move(taken), size);
    places[id] = {begin, begin + size};
    used_ = std::max(used_, begin + size);
  }
  if (memory_.size() < used_) {
    memory_ = Buffer();  // given back first
    memory_ = Buffer(used_);
  }
  for (size_t i = 0; i < kBuffers; ++i) {
    const auto id = static_cast<BufferId>(i);
    if (pieces[id].total() == 0) continue;
    uint8_t* x = memory_.data() + places[id].begin;
    uint8_t* q = x + pieces[id].x;
    uint8_t* scales = q + pieces[id].q;
    uint8_t* sums = scales + pieces[id].scales;
    Activations& buffer = buffers_[id];
    buffer = {.x = reinterpret_cast<float*>(x), .columns = plan[id].columns};
    if (id == BufferId::scratch)
      buffer.columns = whole_lines(scratch * sizeof(float)) / sizeof(float);
    if (!plan[id].quantized) continue;
    buffer.q = reinterpret_cast<int8_t*>(q);
    buffer.scales = reinterpret_cast<float*>(scales);
    buffer.sums = reinterpret_cast<HalfSums*>(sums);
  }
}

}  // namespace hearth
