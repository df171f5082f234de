#include "hearth/shard.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "hearth/cpu.h"
#include "hearth/devices.h"
#include "hearth/finite.h"
#include "hearth/threads.h"
#include "platform/stopwatch.h"
#include "shard/batch.h"
#include "shard/cpu_backend.h"
#include "shard/weights.h"
#include "vulkan/backend.h"

namespace hearth {

struct Shard::State {
  State(ShardConfig shard_config, size_t threads, std::vector<int> pin, const std::string& device,
        const DiskWeights& disk)
      : config((shard_config.validate(), std::move(shard_config))),
        pool(threads, std::move(pin)),
        backend(make_backend(device, disk)),
        weights(config, disk, backend->store()) {
    for (const auto& [name, slot] : weights.slots()) expected[name] = {slot.rows, slot.columns};
  }
  ~State() {
    closing = true;
    if (gathering.joinable()) gathering.join();
  }

  std::unique_ptr<Backend> make_backend(const std::string& device, const DiskWeights& disk) {
    if (device == "cpu") return make_cpu_backend(config, pool);
    if (!disk.layers.empty()) throw std::invalid_argument("weights on disk need --device cpu");
    return make_vulkan_backend(config, pool, parse_vulkan_device(device));
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
    weights.start();
    Program compiled = weights.compile(config);
    backend->prepare(compiled);
    program = std::move(compiled);
  }

  const ShardConfig config;
  std::map<std::string, SliceShape> expected;
  ThreadPool pool;

  std::mutex stepping;  // over the backend and the program
  std::unique_ptr<Backend> backend;

  std::mutex loading;  // over weights, until they are complete; taken after `stepping`
  Weights weights;
  std::atomic<bool> closing{false};
  std::thread gathering;

  std::optional<Program> program;  // compiled by the first step
};

Shard::Shard(ShardConfig config, size_t threads, std::vector<int> pin, const std::string& device,
             const DiskWeights& disk)
    : state_(std::make_unique<State>(std::move(config), threads, std::move(pin), device, disk)) {}

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

size_t Shard::disk_bytes() const {
  const std::lock_guard lock(state_->loading);
  return state_->weights.disk_bytes();
}

size_t Shard::kv_pages() const { return state_->backend->kv_pages(); }

size_t Shard::kv_bytes() const { return state_->backend->kv_bytes(); }

void Shard::release_pages(size_t first) {
  const std::lock_guard lock(state_->stepping);
  state_->backend->release_pages(first);
}

void Shard::copy_state(uint32_t from, uint32_t to, size_t position) {
  const std::lock_guard lock(state_->stepping);
  state_->backend->copy_state(from, to, position);
}

size_t Shard::page_bytes() const { return state_->backend->page_bytes(); }

size_t Shard::state_bytes() const { return state_->backend->state_bytes(); }

void Shard::read_page(uint32_t page, std::span<uint8_t> out) const {
  const std::lock_guard lock(state_->stepping);
  state_->backend->read_page(page, out);
}

void Shard::write_page(uint32_t page, std::span<const uint8_t> bytes) {
  const std::lock_guard lock(state_->stepping);
  state_->backend->write_page(page, bytes);
}

void Shard::read_state(uint32_t slot, size_t position, std::span<uint8_t> out) const {
  const std::lock_guard lock(state_->stepping);
  state_->backend->read_state(slot, position, out);
}

void Shard::write_state(uint32_t slot, size_t position, std::span<const uint8_t> bytes) {
  const std::lock_guard lock(state_->stepping);
  state_->backend->write_state(slot, position, bytes);
}

void Shard::load(const std::string& name, Type type, std::span<const uint8_t> data,
                 size_t first_row) {
  {
    // A backend that has the weights works at one thing at a time.
    std::unique_lock stepping(state_->stepping, std::defer_lock);
    if (state_->backend->store() != nullptr) stepping.lock();
    const std::lock_guard lock(state_->loading);
    state_->weights.load(name, type, data, first_row, state_->pool);
    if (!state_->weights.complete()) return;
  }
  {
    const std::lock_guard lock(state_->stepping);
    state_->prepare();
  }
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
    state_->weights.final_norm().apply(kernels_in_use(), config.norm, row, row);
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
  const size_t rows = batch.rows().size();
  std::vector<uint32_t> not_finite_at(rows, kFinite);
  const Stopwatch watch;
  const uint64_t sync_ns = state.backend->run(
      *state.program,
      {.batch = batch, .x = x, .logits = logits, .lane = lane, .not_finite_at = not_finite_at});
  const uint32_t syncs = state.program->syncs();
  for (size_t r = 0; r < rows; ++r) {
    const float* row = x.data() + r * config.row_size();
    if (not_finite_at[r] == kFinite && !all_finite(row, config.hidden_size))
      not_finite_at[r] = syncs;
  }
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
  timing.sync_ns = sync_ns;
  timing.compute_ns = timing.wall_ns - timing.sync_ns;
  return timing;
}

}  // namespace hearth
