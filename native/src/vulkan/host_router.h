// The host's work from a sync to the choice of experts, with the CPU's kernels, so that all ranks
// choose the same: see host_chooses in recorder.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hearth/threads.h"
#include "layers/experts.h"
#include "layers/program.h"
#include "shard/batch.h"
#include "shard/kv_cache.h"
#include "shard/states.h"
#include "shard/workspace.h"

namespace hearth::vulkan {

// Memory that the GPU sees too. See StepBuffer and ChosenExperts.
struct HostArrays {
  const float* residual;  // [rows, hidden]
  float* partial;         // [rows, hidden]
  float* two_results;     // [rows, 2 * hidden], or nullptr
  float* choices;
  uint32_t *places, *pair_rows, *tiles;
};

class HostRouter {
 public:
  // Both must outlive it.
  HostRouter(const ShardConfig& config, ThreadPool& pool);

  void prepare(const Program& program);
  // Throws std::bad_alloc.
  void run(std::span<const Operation* const> operations, const Batch& batch,
           const HostArrays& arrays);

 private:
  void write_choices(const Route& route, size_t rows, const HostArrays& arrays) const;

  const ShardConfig& config_;
  ThreadPool& pool_;
  WorkQueue queue_;
  KvCache no_kv_;
  SequenceStates no_states_;
  PerBuffer<BufferPlan> plan_;
  Workspace workspace_;
  std::vector<float> residual_;
  ExpertRows expert_rows_;
};

}  // namespace hearth::vulkan
