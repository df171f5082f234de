#include "layers/program.h"

#include <algorithm>
#include <utility>

namespace hearth {
namespace {

Access access_of(const Operation& operation) {
  return std::visit([](const auto& each) { return each.access(); }, operation);
}

// Has barriers of its own.
bool synchronizes_itself(const Operation& operation) {
  return std::holds_alternative<AllReduce>(operation) ||
         std::holds_alternative<NextWeights>(operation);
}

// Whether threads may be in both at once: what they share is only read, or each thread has rows of
// its own in both.
bool may_overlap(const Access& first, const Access& second) {
  if (first.division == Division::rows && second.division == Division::rows) return true;
  if (first.division == Division::stealing && second.division == Division::stealing) return false;
  return !second.reads.intersects(first.writes) && !second.writes.intersects(first.writes) &&
         !second.writes.intersects(first.reads);
}

}  // namespace

void Program::add(Operation operation) {
  const Access access = access_of(operation);
  bool overlaps = true;
  for (size_t i = phase_start_; i < instructions_.size(); ++i)
    overlaps = overlaps && may_overlap(access_of(instructions_[i].operation), access);
  const bool synchronizes = synchronizes_itself(operation);
  const bool follows_sync =
      !instructions_.empty() && synchronizes_itself(instructions_.back().operation);
  if (!overlaps || synchronizes || follows_sync) {
    ++phase_;
    phase_start_ = instructions_.size();
  }
  if (auto* sync = std::get_if<AllReduce>(&operation)) sync->number = syncs_++;
  instructions_.push_back(
      {std::move(operation), !overlaps && !synchronizes && !follows_sync, output_only_, phase_});
}

void Program::size_buffer(BufferId id, size_t columns, bool quantized) {
  sizes_[id].columns = std::max(sizes_[id].columns, columns);
  sizes_[id].quantized = sizes_[id].quantized || quantized;
}

PerBuffer<BufferPlan> Program::plan_buffers() const {
  PerBuffer<BufferPlan> plan = sizes_;
  const auto keep_apart = [&](BufferSet live) {
    for (size_t i = 0; i < kBuffers; ++i) {
      const auto id = static_cast<BufferId>(i);
      if (live.contains(id)) plan[id].apart_from = plan[id].apart_from | live;
    }
  };
  // Liveness, backwards: a buffer is live from the operation that writes it to the last that reads
  // it. All that is live somewhere in a phase is so throughout: its operations run at once.
  BufferSet live, in_phase;
  for (size_t i = instructions_.size(); i-- > 0;) {
    const Access access = access_of(instructions_[i].operation);
    in_phase = in_phase | live | access.writes | access.reads;
    live = live.without(access.writes) | access.reads;
    if (i == 0 || instructions_[i - 1].phase != instructions_[i].phase) {
      keep_apart(in_phase);
      in_phase = live;
    }
  }
  return plan;
}

}  // namespace hearth
