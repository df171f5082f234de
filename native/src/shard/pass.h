// One step under way: what its operations share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include "hearth/finite.h"
#include "hearth/kernels.h"
#include "hearth/lane.h"
#include "hearth/threads.h"
#include "layers/attention.h"
#include "layers/experts.h"
#include "layers/program.h"
#include "shard/backend.h"
#include "shard/batch.h"
#include "shard/kv_cache.h"
#include "shard/states.h"
#include "shard/workspace.h"

namespace hearth {

struct Pass {
  const Kernels& kernels;
  ThreadPool& pool;
  WorkQueue& queue;
  KvCache& kv;
  SequenceStates& states;
  const Workspace& buffers;
  const Batch& batch;
  const std::vector<std::vector<RowRange>>& row_ranges;  // the rows, cut for attention, by kind
  ExpertRows& expert_rows;
  Lane* lane;  // nullptr: this rank is alone
  // By row: the sync at which it was not finite first, or kFinite. See NotFinite.
  std::vector<uint32_t>& not_finite_at;
  // Written by thread 0 in AllReduce, between its barriers.
  uint64_t sync_ns = 0;
  std::exception_ptr error;

  // Thread `thread`'s part of [0, items).
  std::pair<size_t, size_t> part(size_t items, size_t thread) const {
    return split(items, pool.size(), thread);
  }
  std::pair<size_t, size_t> rows_of(size_t thread) const {
    return part(batch.rows().size(), thread);
  }
  // Notes the rows [begin, end) of x that are not finite, and were until now.
  void check_rows(const Activations& x, size_t begin, size_t end, uint32_t sync) {
    for (size_t r = begin; r < end; ++r) {
      if (not_finite_at[r] == kFinite && !all_finite(x.row(r), x.columns)) not_finite_at[r] = sync;
    }
  }
};

// Runs the program on all threads of the pool. Throws what the lane throws.
void run_program(const Program& program, Pass& pass);

}  // namespace hearth
