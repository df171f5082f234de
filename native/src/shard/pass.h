// One step under way: what its operations share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include "hearth/kernels.h"
#include "hearth/lane.h"
#include "hearth/threads.h"
#include "layers/attention.h"
#include "layers/program.h"
#include "shard/batch.h"
#include "shard/kv_cache.h"
#include "shard/workspace.h"

namespace hearth {

struct Pass {
  const Kernels& kernels;
  ThreadPool& pool;
  WorkQueue& queue;
  KvCache& kv;
  const Workspace& buffers;
  const Batch& batch;
  const std::vector<std::vector<RowRange>>& row_ranges;  // the rows, cut for attention, by kind
  Lane* lane;                                            // nullptr: this rank is alone
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
};

// Runs the program on all threads of the pool. Throws what the lane throws.
void run_program(const Program& program, Pass& pass);

}  // namespace hearth
