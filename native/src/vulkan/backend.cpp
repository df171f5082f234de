#include "vulkan/backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "hearth/finite.h"
#include "platform/stopwatch.h"
#include "vulkan/device.h"
#include "vulkan/host_router.h"
#include "vulkan/pacing.h"
#include "vulkan/pages.h"
#include "vulkan/recorder.h"
#include "vulkan/states.h"

namespace hearth {
namespace vulkan {
namespace {

// Shapes of steps whose commands are kept.
constexpr size_t kMostRecordings = 64;

size_t most_experts_of_row(const ShardConfig& config) {
  size_t used = 0;
  for (const BlockConfig& block : config.kinds) {
    if (block.experts) used = std::max(used, block.experts->used);
  }
  return used;
}

size_t page_bytes_of(const ShardConfig& config) { return KvCache(kv_shape(config)).page_bytes(); }

// Arrays one after another in memory that host and GPU share.
class Arrays {
 public:
  template <typename Value>
  size_t add(size_t count) {
    const size_t at = bytes_;
    bytes_ += (count * sizeof(Value) + 15) / 16 * 16;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// The commands of steps of one shape.
struct Recorded {
  std::vector<Segment> segments;
  double most_work = 0;  // that its segments were made for
};

class VulkanBackend : public Backend {
 public:
  VulkanBackend(const ShardConfig& config, ThreadPool& pool, size_t device)
      : config_((check_runs(config), config)),
        device_(device),
        weights_(device_),
        pages_(device_, page_bytes_of(config), config.max_pages),
        states_(device_, state_shape(config)),
        host_(config, pool),
        experts_of_row_(most_experts_of_row(config)) {
    for (const RopeConfig& rope : config.ropes) angles_ += rope.frequencies.size();
  }

  MatrixStore* store() override { return &weights_; }
  size_t kv_pages() const override { return pages_.count(); }
  size_t kv_bytes() const override {
    return pages_.count() * pages_.page_bytes() + states_.size_bytes();
  }
  void release_pages(size_t first) override {
    pages_.release_from(first);
    if (first == 0) states_.release();
  }
  size_t page_bytes() const override { return pages_.page_bytes(); }
  void read_page(uint32_t page, std::span<uint8_t> out) const override { pages_.read(page, out); }
  void write_page(uint32_t page, std::span<const uint8_t> bytes) override {
    pages_.write(page, bytes);
  }

  size_t state_bytes() const override { return states_.slot_bytes(); }
  void copy_state(uint32_t from, uint32_t to, size_t position) override {
    states_.copy(from, to, position);
  }
  void read_state(uint32_t slot, size_t position, std::span<uint8_t> out) const override {
    states_.read(slot, position, out);
  }
  void write_state(uint32_t slot, size_t position, std::span<const uint8_t> bytes) override {
    states_.write(slot, position, bytes);
  }

  // Weights that the host holds go to the GPU too here, so that a step finds them there.
  void prepare(const Program& program) override {
    sizes_ = program.plan_buffers();
    host_.prepare(program);
    resize({.rows = 1, .output_rows = 1, .pages = 1, .chunks = 0});
    const StepShape shape = {.rows = 1,
                             .output_rows = config_.vocab.size() > 0 ? size_t{1} : 0,
                             .sequences = 1,
                             .prompt = false,
                             .divided = false,
                             .syncs = false};
    record(device_, config_, program, buffers_, arrays_, weights_, shape, pacing_.most_work());
  }
  uint64_t run(const Program& program, const StepArgs& step) override;

 private:
  // Sizes of a step that need room. chunks: of positions, that attention divides; or 0.
  struct Sizes {
    size_t rows, output_rows, pages, chunks;
  };
  // Room for so much. What was recorded before is given up where addresses change.
  void resize(const Sizes& sizes);
  void grow(const Sizes& sizes);
  void resize_buffers(size_t rows, size_t output_rows);
  void fill(const Batch& batch);
  void fill_rows(const Batch& batch);
  void copy_in(const StepArgs& step);
  void copy_out(const StepArgs& step) const;
  // Runs the commands, the syncs between them, and what the host does; nanoseconds of the syncs.
  uint64_t run_segments(const StepShape& shape, const StepArgs& step);
  // Waits in the sync; nanoseconds.
  uint64_t sync(const AllReduce& operation, const StepArgs& step);
  HostArrays host_arrays() const;
  template <typename Value>
  Value* array(size_t offset) const {
    return reinterpret_cast<Value*>(step_memory_.data() + offset);
  }

  const ShardConfig& config_;
  Device device_;
  DeviceWeights weights_;
  Pages pages_;
  States states_;
  HostRouter host_;
  const size_t experts_of_row_;
  size_t angles_ = 0;  // of a row

  PerBuffer<BufferPlan> sizes_;
  PerBuffer<StepBuffer> buffers_;
  PerBuffer<Memory> memories_;
  Sizes most_ = {};

  Memory step_memory_;
  Memory experts_memory_, parts_memory_;
  struct {
    size_t places, pages, chosen, cosines, sines, factors, sequences, of_rows, states;
  } at_ = {};
  // Offsets of ChosenExperts' arrays.
  struct ExpertOffsets {
    size_t choices, places, pair_rows, tiles;
  };
  ExpertOffsets host_experts_at_ = {};
  ExpertOffsets add_experts(Arrays& arrays) const {
    const size_t pairs = most_.rows * experts_of_row_;
    return {.choices = arrays.add<float>(2 * pairs),
            .places = arrays.add<uint32_t>(pairs),
            .pair_rows = arrays.add<uint32_t>(pairs),
            .tiles = arrays.add<uint32_t>(4 * 2 * pairs)};  // see expert_tiles
  }
  static ChosenExperts experts_from(VkDeviceAddress base, const ExpertOffsets& at) {
    return {.choices = base + at.choices,
            .places = base + at.places,
            .pair_rows = base + at.pair_rows,
            .tiles = base + at.tiles};
  }
  StepArrays arrays_;

  Pacing pacing_;
  std::map<StepShape, Recorded> recordings_;
};

void VulkanBackend::resize(const Sizes& sizes) {
  if (sizes.rows <= most_.rows && sizes.output_rows <= most_.output_rows &&
      sizes.pages <= most_.pages && sizes.chunks <= most_.chunks)
    return;
  recordings_.clear();
  try {
    grow(sizes);
  } catch (...) {  // what is left has no one size: the next step begins from nothing
    most_ = {};
    memories_ = {};
    step_memory_ = Memory();
    experts_memory_ = Memory();
    parts_memory_ = Memory();
    throw;
  }
}

void VulkanBackend::grow(const Sizes& sizes) {
  if (sizes.rows > most_.rows || sizes.output_rows > most_.output_rows) {
    most_.rows = std::max(sizes.rows, most_.rows);
    most_.output_rows = std::max(sizes.output_rows, most_.output_rows);
    resize_buffers(most_.rows, most_.output_rows);
  }
  if (sizes.pages > most_.pages) most_.pages = std::max(sizes.pages, 2 * most_.pages);
  if (sizes.chunks > most_.chunks) {
    most_.chunks = std::max(sizes.chunks, 2 * most_.chunks);
    parts_memory_ = Memory();
    parts_memory_ =
        Memory(device_, most_.chunks * part_floats(config_) * sizeof(float), Place::device);
  }
  Arrays arrays;
  at_ = {.places = arrays.add<uint32_t>(2 * most_.rows),
         .pages = arrays.add<uint64_t>(most_.pages),
         .chosen = arrays.add<uint32_t>(most_.output_rows),
         .cosines = arrays.add<float>(most_.rows * angles_),
         .sines = arrays.add<float>(most_.rows * angles_),
         .factors = arrays.add<float>(most_.rows * config_.kinds.size()),
         .sequences = arrays.add<uint32_t>(2 * most_.rows),
         .of_rows = arrays.add<uint32_t>(most_.rows),
         .states = arrays.add<uint64_t>(most_.rows)};
  host_experts_at_ = add_experts(arrays);
  Arrays of_gpu;
  const ExpertOffsets experts_at = add_experts(of_gpu);
  experts_memory_ = Memory();
  experts_memory_ = Memory(device_, of_gpu.bytes(), Place::device);
  step_memory_ = Memory();
  step_memory_ = Memory(device_, arrays.bytes(), Place::shared);
  const VkDeviceAddress base = step_memory_.address();
  arrays_ = {.places = base + at_.places,
             .pages = base + at_.pages,
             .chosen = base + at_.chosen,
             .cosines = base + at_.cosines,
             .sines = base + at_.sines,
             .factors = base + at_.factors,
             .sequences = base + at_.sequences,
             .of_rows = base + at_.of_rows,
             .states = base + at_.states,
             .parts = parts_memory_.address(),
             .most_chunks = most_.chunks,
             .host_experts = experts_from(base, host_experts_at_),
             .experts = experts_from(experts_memory_.address(), experts_at),
             .angles = angles_,
             .most_rows = most_.rows};
}

void VulkanBackend::resize_buffers(size_t rows, size_t output_rows) {
  sizes_[BufferId::residual].columns = config_.hidden_size;
  sizes_[BufferId::logits].columns = config_.vocab.size();
  sizes_[BufferId::scratch].columns = scratch_columns(config_);
  if (config_.layer_inputs) sizes_[BufferId::layer_inputs].columns = config_.layer_inputs->width();
  // Angles are the host's, choices lie with the arrays of a step, and rows need not be gathered.
  for (const BufferId id :
       {BufferId::cos, BufferId::sin, BufferId::choices, BufferId::expert_input})
    sizes_[id] = {};
  for (size_t i = 0; i < kBuffers; ++i) {
    const auto id = static_cast<BufferId>(i);
    const BufferPlan& plan = sizes_[id];
    if (plan.columns == 0) continue;
    // The host reads and writes these: a step's input and output, and what is summed over ranks.
    constexpr BufferSet kShared = {BufferId::residual,     BufferId::logits,
                                   BufferId::partial,      BufferId::two_results,
                                   BufferId::layer_inputs, BufferId::row_squares};
    const bool shared = kShared.contains(id);
    const size_t count =
        (id == BufferId::logits ? output_rows : std::max(rows, output_rows)) * plan.columns;
    Arrays pieces;
    const size_t x = pieces.add<float>(count);
    const size_t q = plan.quantized ? pieces.add<int8_t>(count) : 0;
    const size_t scales = plan.quantized ? pieces.add<float>(count / kBlock) : 0;
    memories_[id] = Memory();
    memories_[id] = Memory(device_, pieces.bytes(), shared ? Place::shared : Place::device);
    const VkDeviceAddress base = memories_[id].address();
    buffers_[id] = {.x = base + x, .columns = plan.columns};
    if (!plan.quantized) continue;
    buffers_[id].q = base + q;
    buffers_[id].scales = base + scales;
  }
}

// Positions, pages and states of the step's sequences.
void VulkanBackend::fill(const Batch& batch) {
  auto* places = array<uint32_t>(at_.places);
  auto* pages = array<uint64_t>(at_.pages);
  uint32_t row = 0, page = 0, number = 0;
  for (const SequenceStep& sequence : batch.sequences()) {
    const size_t end = sequence.position + sequence.rows, first = page;
    array<uint32_t>(at_.sequences)[2 * number] = row;
    array<uint32_t>(at_.sequences)[2 * number + 1] = static_cast<uint32_t>(sequence.rows);
    array<uint64_t>(at_.states)[number] = states_.address(sequence.slot);
    for (size_t p = 0; p * config_.page_size < end; ++p)
      pages[page++] = pages_.address(sequence.pages[p]);
    for (size_t r = 0; r < sequence.rows; ++r, ++row) {
      places[2 * row] = static_cast<uint32_t>(sequence.position + r);
      places[2 * row + 1] = static_cast<uint32_t>(first);
      array<uint32_t>(at_.of_rows)[row] = number;
    }
    ++number;
  }
  fill_rows(batch);
  const auto chosen = batch.output_rows();
  std::copy(chosen.begin(), chosen.end(), array<uint32_t>(at_.chosen));
}

// Angles of the step's rows, and factors of their queries.
void VulkanBackend::fill_rows(const Batch& batch) {
  auto* cosines = array<float>(at_.cosines);
  auto* sines = array<float>(at_.sines);
  for (size_t r = 0; r < batch.rows().size(); ++r) {
    const size_t position = batch.rows()[r].position;
    for (const RopeConfig& rope : config_.ropes) {
      for (const float frequency : rope.frequencies) {
        const float angle = static_cast<float>(position) * frequency;  // as RopeAngles
        *cosines++ = rope.magnitude * std::cos(angle);
        *sines++ = rope.magnitude * std::sin(angle);
      }
    }
    for (size_t kind = 0; kind < config_.kinds.size(); ++kind) {
      const auto* attention = std::get_if<AttentionConfig>(&config_.kinds[kind].mixer);
      float factor = 1.0f;
      if (attention != nullptr && attention->temperature) {
        const auto& temperature = attention->temperature;
        const float lengths = std::floor(static_cast<float>(position) / temperature->length);
        factor += temperature->slope * std::log1p(lengths);
      }
      array<float>(at_.factors)[kind * most_.rows + r] = factor;
    }
  }
}

void VulkanBackend::copy_in(const StepArgs& step) {
  const size_t hidden = config_.hidden_size, width = config_.row_size() - hidden;
  auto* residual = reinterpret_cast<float*>(memories_[BufferId::residual].data());
  auto* inputs = reinterpret_cast<float*>(memories_[BufferId::layer_inputs].data());
  for (size_t r = 0; r < step.batch.rows().size(); ++r) {
    const float* row = step.x.data() + r * config_.row_size();
    std::copy_n(row, hidden, residual + r * hidden);
    if (width > 0) std::copy_n(row + hidden, width, inputs + r * width);
  }
}

void VulkanBackend::copy_out(const StepArgs& step) const {
  const size_t hidden = config_.hidden_size, width = config_.row_size() - hidden;
  const auto* residual = reinterpret_cast<const float*>(memories_[BufferId::residual].data());
  const auto* inputs = reinterpret_cast<const float*>(memories_[BufferId::layer_inputs].data());
  for (size_t r = 0; r < step.batch.rows().size(); ++r) {
    float* row = step.x.data() + r * config_.row_size();
    std::copy_n(residual + r * hidden, hidden, row);
    if (width > 0) std::copy_n(inputs + r * width, width, row + hidden);
  }
  const size_t output_rows = step.batch.output_rows().size();
  if (output_rows == 0) return;
  std::memcpy(step.logits, memories_[BufferId::logits].data(),
              output_rows * config_.vocab.size() * sizeof(float));
}

uint64_t VulkanBackend::sync(const AllReduce& operation, const StepArgs& step) {
  auto* values = reinterpret_cast<float*>(memories_[operation.buffer].data());
  const size_t rows = step.batch.rows().size(), columns = operation.columns;
  for (size_t r = 0; r < rows; ++r) {
    if (step.not_finite_at[r] == kFinite && !all_finite(values + r * columns, columns))
      step.not_finite_at[r] = operation.number;
  }
  const Stopwatch watch;
  step.lane->all_reduce(values, rows, columns, operation.exact);
  return watch.nanoseconds();
}

HostArrays VulkanBackend::host_arrays() const {
  const auto floats = [&](BufferId id) { return reinterpret_cast<float*>(memories_[id].data()); };
  return {.residual = floats(BufferId::residual),
          .partial = floats(BufferId::partial),
          .two_results = floats(BufferId::two_results),
          .choices = array<float>(host_experts_at_.choices),
          .places = array<uint32_t>(host_experts_at_.places),
          .pair_rows = array<uint32_t>(host_experts_at_.pair_rows),
          .tiles = array<uint32_t>(host_experts_at_.tiles)};
}

uint64_t VulkanBackend::run_segments(const StepShape& shape, const StepArgs& step) {
  const Recorded& recorded = recordings_.at(shape);
  uint64_t sync_ns = 0;
  double work = 0, seconds = 0, slowest = 0;
  bool cut = false;
  for (const Segment& segment : recorded.segments) {
    const Stopwatch running;
    device_.run(*segment.commands);
    const double took = static_cast<double>(running.nanoseconds()) / 1e9;
    work += segment.work;
    seconds += took;
    slowest = std::max(slowest, took);
    if (segment.sync != nullptr)
      sync_ns += sync(*segment.sync, step);
    else
      cut = cut || &segment != &recorded.segments.back();
    if (!segment.on_host.empty()) host_.run(segment.on_host, step.batch, host_arrays());
  }
  if (pacing_.ran(work, seconds, recorded.most_work, cut, slowest)) recordings_.erase(shape);
  return sync_ns;
}

uint64_t VulkanBackend::run(const Program& program, const StepArgs& step) {
  const Batch& batch = step.batch;
  const auto longest = [&](auto measure) {
    size_t most = 0;
    for (const SequenceStep& sequence : batch.sequences()) most = std::max(most, measure(sequence));
    return most;
  };
  const size_t positions = longest([](const auto& each) { return each.position + each.rows; });
  const StepShape shape = {
      .rows = batch.rows().size(),
      .output_rows = batch.output_rows().size(),
      .sequences = states_.slot_bytes() > 0 ? batch.sequences().size() : 0,
      .prompt = longest([](const auto& each) { return each.rows; }) >= kPromptRows,
      .divided = positions > kChunkPositions,
      .syncs = step.lane != nullptr};
  if (shape.rows == 0) return 0;
  device_.check();
  states_.check(batch.sequences());
  size_t pages = 0;
  for (const SequenceStep& sequence : batch.sequences()) {
    const size_t end = sequence.position + sequence.rows;
    for (size_t p = 0; p * config_.page_size < end; ++p, ++pages) pages_.ensure(sequence.pages[p]);
  }
  states_.begin(batch.sequences());
  const size_t chunks = (positions + kChunkPositions - 1) / kChunkPositions;
  resize({.rows = shape.rows,
          .output_rows = shape.output_rows,
          .pages = pages,
          .chunks = shape.divided ? chunks : 0});
  fill(batch);
  if (recordings_.size() >= kMostRecordings && !recordings_.contains(shape)) recordings_.clear();
  Recorded& recorded = recordings_[shape];
  if (recorded.segments.empty()) {
    recorded.most_work = pacing_.most_work();
    recorded.segments =
        record(device_, config_, program, buffers_, arrays_, weights_, shape, recorded.most_work);
  }
  copy_in(step);
  const uint64_t sync_ns = run_segments(shape, step);
  copy_out(step);
  states_.end(batch.sequences());
  return sync_ns;
}

}  // namespace
}  // namespace vulkan

std::unique_ptr<Backend> make_vulkan_backend(const ShardConfig& config, ThreadPool& pool,
                                             size_t device) {
  return std::make_unique<vulkan::VulkanBackend>(config, pool, device);
}

}  // namespace hearth
