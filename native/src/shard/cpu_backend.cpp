#include "shard/cpu_backend.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "hearth/cpu.h"
#include "layers/gated_delta.h"
#include "shard/pass.h"
#include "shard/workspace.h"

namespace hearth {
namespace {

// Floats of scratch memory that a kind of block's mixer needs for each thread. ranges: see
// Pass::row_ranges.
size_t mixer_scratch(const ShardConfig& config, const BlockConfig& block,
                     const std::vector<RowRange>& ranges, size_t key_stride) {
  if (const auto shape = attention_shape(block.mixer))
    return attention_scratch(ranges, *shape, key_stride, config.page_size);
  return gated_delta_scratch(gated_delta_shape(std::get<GatedDeltaConfig>(block.mixer)));
}

void reserve_experts(const ShardConfig& config, size_t rows, ExpertRows& expert_rows) {
  size_t experts = 0, used = 0;
  for (const BlockConfig& block : config.kinds) {
    if (!block.experts) continue;
    experts = std::max(experts, block.experts->count);
    used = std::max(used, block.experts->used);
  }
  expert_rows.reserve(experts, rows * used);
}

void check_size(size_t given, size_t needed) {
  if (given == needed) return;
  throw std::invalid_argument("room for " + std::to_string(given) + " bytes of " +
                              std::to_string(needed));
}

class CpuBackend : public Backend {
 public:
  CpuBackend(const ShardConfig& config, ThreadPool& pool)
      : config_(config),
        kernels_(kernels_in_use()),
        pool_(pool),
        queue_(pool.size()),
        kv_(kv_shape(config)),
        states_(state_shape(config)) {}

  size_t kv_pages() const override { return kv_.pages(); }
  size_t kv_bytes() const override { return kv_.size_bytes() + states_.size_bytes(); }
  void release_pages(size_t first) override {
    kv_.release_from(first);
    if (first == 0) states_.release();
  }
  void copy_state(uint32_t from, uint32_t to, size_t position) override {
    states_.copy(from, to, position);
  }
  size_t page_bytes() const override { return kv_.page_bytes(); }
  size_t state_bytes() const override { return states_.saved_bytes(); }
  void read_page(uint32_t page, std::span<uint8_t> out) const override {
    copy_out(kv_.content(page), out);
  }
  void write_page(uint32_t page, std::span<const uint8_t> bytes) override {
    kv_.replace(page, bytes);
  }
  void read_state(uint32_t slot, size_t position, std::span<uint8_t> out) const override {
    check_size(out.size(), states_.saved_bytes());
    states_.read(slot, position, out);
  }
  void write_state(uint32_t slot, size_t position, std::span<const uint8_t> bytes) override {
    states_.replace(slot, position, bytes);
  }

  void prepare(const Program& program) override { buffer_plan_ = program.plan_buffers(); }
  uint64_t run(const Program& program, const StepArgs& step) override;

 private:
  static void copy_out(std::span<const uint8_t> content, std::span<uint8_t> out) {
    check_size(out.size(), content.size());
    std::copy(content.begin(), content.end(), out.begin());
  }

  // Gives pages and states memory: after all checks, because a step that is refused should take
  // none.
  void take_memory(const Batch& batch) {
    for (const SequenceStep& sequence : batch.sequences()) {
      const size_t end = sequence.position + sequence.rows;
      for (size_t p = 0; p * config_.page_size < end; ++p) kv_.ensure(sequence.pages[p]);
    }
    states_.begin(batch.sequences());
  }

  const ShardConfig& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  WorkQueue queue_;
  KvCache kv_;
  SequenceStates states_;
  PerBuffer<BufferPlan> buffer_plan_;
  Workspace workspace_;
  ExpertRows expert_rows_;
};

uint64_t CpuBackend::run(const Program& program, const StepArgs& step) {
  const Batch& batch = step.batch;
  const size_t threads = pool_.size(), rows = batch.rows().size();
  states_.check(batch.sequences());
  take_memory(batch);
  reserve_experts(config_, rows, expert_rows_);
  std::vector<std::vector<RowRange>> ranges;
  size_t scratch = kernels_.matmul_scratch / sizeof(float);
  for (const BlockConfig& block : config_.kinds) {
    const auto shape = attention_shape(block.mixer);
    ranges.push_back(shape ? cut_rows(batch, *shape, threads) : std::vector<RowRange>());
    scratch = std::max(scratch, mixer_scratch(config_, block, ranges.back(), kv_.stride()));
  }
  workspace_.resize(buffer_plan_, rows, scratch, threads);
  // Of rows that hold more than the residual stream: a copy of that.
  std::vector<float> residual(config_.layer_inputs ? rows * config_.hidden_size : 0);
  const auto row_of = [&](size_t r) { return step.x.data() + r * config_.row_size(); };
  for (size_t r = 0; config_.layer_inputs && r < rows; ++r)
    std::copy_n(row_of(r), config_.hidden_size, residual.data() + r * config_.hidden_size);
  workspace_.bind(BufferId::residual, config_.layer_inputs ? residual.data() : step.x.data(),
                  config_.hidden_size);
  workspace_.bind(BufferId::layer_inputs, step.x.data(), config_.row_size());
  workspace_.bind(BufferId::logits, step.logits, config_.vocab.size());
  Pass pass = {.kernels = kernels_,
               .pool = pool_,
               .queue = queue_,
               .kv = kv_,
               .states = states_,
               .buffers = workspace_,
               .batch = batch,
               .row_ranges = ranges,
               .expert_rows = expert_rows_,
               .lane = step.lane,
               .not_finite_at = step.not_finite_at,
               .sync_ns = 0,
               .error = nullptr};
  run_program(program, pass);
  states_.end(batch.sequences());
  for (size_t r = 0; config_.layer_inputs && r < rows; ++r)
    std::copy_n(residual.data() + r * config_.hidden_size, config_.hidden_size, row_of(r));
  return pass.sync_ns;
}

}  // namespace

KvShape kv_shape(const ShardConfig& config) {
  KvShape shape = {.layers = {},
                   .page_size = config.page_size,
                   .max_pages = config.max_pages,
                   .type = config.kv_type};
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const MixerConfig& mixer = config.kind_of(layer).mixer;
    const auto attention = attention_shape(mixer);
    const auto* plain = std::get_if<AttentionConfig>(&mixer);
    if (!attention || (plain != nullptr && plain->kv_layer)) {
      shape.layers.push_back({0, 0, 0});
      continue;
    }
    // The values of latent attention are a part of its keys.
    const bool latent = std::holds_alternative<LatentAttentionConfig>(mixer);
    const size_t value_size = latent ? 0 : attention->value_size;
    shape.layers.push_back({attention->kv_heads, attention->key_size, value_size});
  }
  return shape;
}

StateShape state_shape(const ShardConfig& config) {
  StateShape shape = {
      .floats = {}, .log_floats = {}, .slots = config.max_sequences, .undo = config.max_undo};
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const auto* mixer = std::get_if<GatedDeltaConfig>(&config.kind_of(layer).mixer);
    if (mixer == nullptr) {
      shape.floats.push_back(0);
      shape.log_floats.push_back(0);
      continue;
    }
    const size_t heads = mixer->key_heads.size();
    shape.floats.push_back(
        heads * gated_delta_floats(mixer->group, mixer->key_size, mixer->value_size, mixer->width));
    shape.log_floats.push_back(
        heads * gated_delta_log_floats(mixer->group, mixer->key_size, mixer->value_size));
  }
  return shape;
}

std::unique_ptr<Backend> make_cpu_backend(const ShardConfig& config, ThreadPool& pool) {
  return std::make_unique<CpuBackend>(config, pool);
}

}  // namespace hearth
