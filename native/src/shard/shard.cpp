#include "hearth/shard.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "hearth/cpu.h"
#include "hearth/threads.h"
#include "platform/stopwatch.h"
#include "shard/batch.h"
#include "shard/kv_cache.h"
#include "shard/pass.h"
#include "shard/states.h"
#include "shard/weights.h"
#include "shard/workspace.h"

namespace hearth {
namespace {

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
  StateShape shape = {.floats = {}, .slots = config.max_sequences};
  for (size_t layer = 0; layer < config.layers.size(); ++layer) {
    const auto* mixer = std::get_if<GatedDeltaConfig>(&config.kind_of(layer).mixer);
    shape.floats.push_back(mixer == nullptr
                               ? 0
                               : mixer->key_heads.size() *
                                     gated_delta_floats(mixer->group, mixer->key_size,
                                                        mixer->value_size, mixer->width));
  }
  return shape;
}

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

}  // namespace

struct Shard::State {
  State(ShardConfig shard_config, size_t threads, std::vector<int> pin)
      : config((shard_config.validate(), std::move(shard_config))),
        kernels(kernels_in_use()),
        pool(threads, std::move(pin)),
        queue(threads),
        weights(config),
        kv(kv_shape(config)),
        states(state_shape(config)) {
    for (const auto& [name, slot] : weights.slots()) expected[name] = {slot.rows, slot.columns};
  }
  ~State() {
    closing = true;
    if (gathering.joinable()) gathering.join();
  }

  // Compiles the program once. Throws std::logic_error while slices are missing.
  void prepare() {
    if (program) return;
    const std::lock_guard lock(loading);
    if (!weights.complete()) {
      const auto names = weights.missing();
      throw std::logic_error("the shard lacks " + std::to_string(names.size()) +
                             " slices, the first is '" + names.front() + "'");
    }
    program = weights.compile(config);
    buffer_plan = program->plan_buffers();
  }

  // Gives pages and states memory: after all checks, because a step that is refused should take
  // none.
  void take_memory(const Batch& batch) {
    for (const SequenceStep& sequence : batch.sequences()) {
      const size_t end = sequence.position + sequence.rows;
      for (size_t p = 0; p * config.page_size < end; ++p) kv.ensure(sequence.pages[p]);
    }
    states.begin(batch.sequences());
  }

  const ShardConfig config;
  const Kernels& kernels;
  std::map<std::string, SliceShape> expected;
  ThreadPool pool;
  WorkQueue queue;

  std::mutex loading;  // over weights, until they are complete
  Weights weights;
  std::atomic<bool> closing{false};
  std::thread gathering;

  std::mutex stepping;  // over what follows
  KvCache kv;
  SequenceStates states;
  std::optional<Program> program;  // compiled by the first step
  PerBuffer<BufferPlan> buffer_plan;
  Workspace workspace;
  ExpertRows expert_rows;
};

Shard::Shard(ShardConfig config, size_t threads, std::vector<int> pin)
    : state_(std::make_unique<State>(std::move(config), threads, std::move(pin))) {}

Shard::~Shard() = default;

const ShardConfig& Shard::config() const { return state_->config; }

const std::map<std::string, SliceShape>& Shard::expected() const { return state_->expected; }

std::vector<std::string> Shard::missing() const {
  const std::lock_guard lock(state_->loading);
  return state_->weights.missing();
}

size_t Shard::weight_bytes() const {
  const std::lock_guard lock(state_->loading);
  return state_->weights.size_bytes();
}

size_t Shard::kv_pages() const { return state_->kv.pages(); }

size_t Shard::kv_bytes() const { return state_->kv.size_bytes() + state_->states.size_bytes(); }

void Shard::release_pages(size_t first) {
  const std::lock_guard lock(state_->stepping);
  state_->kv.release_from(first);
  if (first == 0) state_->states.release();
}

void Shard::copy_state(uint32_t from, uint32_t to, size_t position) {
  const std::lock_guard lock(state_->stepping);
  state_->states.copy(from, to, position);
}

size_t Shard::page_bytes() const { return state_->kv.page_bytes(); }

size_t Shard::state_bytes() const { return state_->states.slot_bytes(); }

void Shard::read_page(uint32_t page, std::span<uint8_t> out) const {
  const std::lock_guard lock(state_->stepping);
  const std::span<const uint8_t> content = state_->kv.content(page);
  check_size(out.size(), content.size());
  std::copy(content.begin(), content.end(), out.begin());
}

void Shard::write_page(uint32_t page, std::span<const uint8_t> bytes) {
  const std::lock_guard lock(state_->stepping);
  state_->kv.replace(page, bytes);
}

void Shard::read_state(uint32_t slot, size_t position, std::span<uint8_t> out) const {
  const std::lock_guard lock(state_->stepping);
  const std::span<const uint8_t> content = state_->states.content(slot, position);
  check_size(out.size(), content.size());
  std::copy(content.begin(), content.end(), out.begin());
}

void Shard::write_state(uint32_t slot, size_t position, std::span<const uint8_t> bytes) {
  const std::lock_guard lock(state_->stepping);
  state_->states.replace(slot, position, bytes);
}

void Shard::load(const std::string& name, Type type, std::span<const uint8_t> data,
                 size_t first_row) {
  const std::lock_guard lock(state_->loading);
  state_->weights.load(name, type, data, first_row, state_->pool);
  if (!state_->weights.complete()) return;
  try {
    state_->gathering =
        std::thread([state = state_.get()] { state->weights.gather(state->closing); });
  } catch (const std::system_error&) {  // no more threads to be had: it works as well without
  }
}

void Shard::embed(std::span<const uint32_t> tokens, std::span<const uint32_t> positions,
                  float* out) const {
  const ShardConfig& config = state_->config;
  const Matrix& embedding = state_->weights.embedding();
  if (embedding.empty()) throw std::logic_error("this shard holds no embedding");
  if (config.learned_positions > 0 && positions.size() != tokens.size()) {
    throw std::invalid_argument(std::to_string(positions.size()) + " positions for " +
                                std::to_string(tokens.size()) + " tokens");
  }
  std::vector<float> position(config.learned_positions > 0 ? config.hidden_size : 0);
  for (size_t t = 0; t < tokens.size(); ++t, out += config.row_size()) {
    if (tokens[t] >= config.vocab_size) {
      throw std::invalid_argument("token " + std::to_string(tokens[t]) + " of a vocabulary of " +
                                  std::to_string(config.vocab_size));
    }
    embedding.read_row(tokens[t], out);
    if (config.embedding_scale != 1.0f) {
      for (size_t i = 0; i < config.hidden_size; ++i) out[i] *= config.embedding_scale;
    }
    // Their scale and the rest come with the first layer; see LayerInputsConfig.
    if (config.layer_inputs)
      state_->weights.layer_embedding().read_row(tokens[t], out + config.hidden_size);
    if (config.learned_positions == 0) continue;
    if (positions[t] >= config.learned_positions) {
      throw std::invalid_argument("position " + std::to_string(positions[t]) + " of a model of " +
                                  std::to_string(config.learned_positions) + " positions");
    }
    state_->weights.positions().read_row(positions[t], position.data());
    for (size_t i = 0; i < config.hidden_size; ++i) out[i] += position[i];
  }
}

void Shard::final_norm(std::span<float> rows) const {
  const ShardConfig& config = state_->config;
  if (config.vocab.size() == 0 || !state_->weights.complete())
    throw std::logic_error("this shard has no final norm");
  if (rows.size() % config.hidden_size != 0) {
    throw std::invalid_argument(std::to_string(rows.size()) + " numbers are not rows of " +
                                std::to_string(config.hidden_size));
  }
  for (size_t at = 0; at < rows.size(); at += config.hidden_size) {
    float* row = rows.data() + at;
    state_->weights.final_norm().apply(state_->kernels, config.norm, row, row);
  }
}

StepTiming Shard::step(std::span<float> x, std::span<const SequenceStep> sequences,
                       std::span<const uint32_t> output_rows, float* logits, Lane* lane,
                       std::vector<NotFinite>* not_finite) {
  State& state = *state_;
  const ShardConfig& config = state.config;
  const std::unique_lock alone(state.stepping, std::try_to_lock);
  if (!alone.owns_lock()) throw std::logic_error("the shard is in the middle of another step");
  state.prepare();
  const Batch batch(config, x.size(), sequences, output_rows);
  state.states.check(sequences);
  state.take_memory(batch);
  const size_t threads = state.pool.size();
  reserve_experts(config, batch.rows().size(), state.expert_rows);
  std::vector<std::vector<RowRange>> ranges;
  size_t scratch = state.kernels.matmul_scratch / sizeof(float);
  for (const BlockConfig& block : config.kinds) {
    const auto shape = attention_shape(block.mixer);
    ranges.push_back(shape ? cut_rows(batch, *shape, threads) : std::vector<RowRange>());
    scratch = std::max(scratch, mixer_scratch(config, block, ranges.back(), state.kv.stride()));
  }
  state.workspace.resize(state.buffer_plan, batch.rows().size(), scratch, threads);
  const size_t rows = batch.rows().size();
  // Of rows that hold more than the residual stream: a copy of that.
  std::vector<float> residual(config.layer_inputs ? rows * config.hidden_size : 0);
  const auto row_of = [&](size_t r) { return x.data() + r * config.row_size(); };
  for (size_t r = 0; config.layer_inputs && r < rows; ++r)
    std::copy_n(row_of(r), config.hidden_size, residual.data() + r * config.hidden_size);
  state.workspace.bind(BufferId::residual, config.layer_inputs ? residual.data() : x.data(),
                       config.hidden_size);
  state.workspace.bind(BufferId::layer_inputs, x.data(), config.row_size());
  state.workspace.bind(BufferId::logits, logits, config.vocab.size());
  std::vector<uint32_t> not_finite_at(batch.rows().size(), kFinite);
  Pass pass = {.kernels = state.kernels,
               .pool = state.pool,
               .queue = state.queue,
               .kv = state.kv,
               .states = state.states,
               .buffers = state.workspace,
               .batch = batch,
               .row_ranges = ranges,
               .expert_rows = state.expert_rows,
               .lane = lane,
               .not_finite_at = not_finite_at,
               .sync_ns = 0,
               .error = nullptr};
  const Stopwatch watch;
  run_program(*state.program, pass);
  state.states.end(sequences);
  for (size_t r = 0; config.layer_inputs && r < rows; ++r)
    std::copy_n(residual.data() + r * config.hidden_size, config.hidden_size, row_of(r));
  const uint32_t syncs = state.program->syncs();
  pass.check_rows(state.workspace[BufferId::residual], 0, batch.rows().size(), syncs);
  for (size_t i = 0; i < output_rows.size(); ++i) {
    uint32_t& at = not_finite_at[output_rows[i]];
    const size_t vocab = config.vocab.size();
    if (at == kFinite && !all_finite(logits + i * vocab, vocab)) at = syncs + 1;
  }
  for (uint32_t r = 0; not_finite != nullptr && r < not_finite_at.size(); ++r) {
    if (not_finite_at[r] != kFinite) not_finite->push_back({r, not_finite_at[r]});
  }
  StepTiming timing;
  timing.wall_ns = watch.nanoseconds();
  timing.sync_ns = pass.sync_ns;
  timing.compute_ns = timing.wall_ns - timing.sync_ns;
  return timing;
}

}  // namespace hearth
