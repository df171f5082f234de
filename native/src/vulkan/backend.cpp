#include "vulkan/backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>

#include "hearth/finite.h"
#include "platform/stopwatch.h"
#include "vulkan/device.h"
#include "vulkan/pages.h"
#include "vulkan/recorder.h"

namespace hearth {
namespace vulkan {
namespace {

// Shapes of steps whose commands are kept.
constexpr size_t kMostRecordings = 64;

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

class VulkanBackend : public Backend {
 public:
  VulkanBackend(const ShardConfig& config, size_t device)
      : config_((check_runs(config), config)),
        device_(device),
        weights_(device_),
        pages_(device_, page_bytes_of(config), config.max_pages) {
    for (const RopeConfig& rope : config.ropes) angles_ += rope.frequencies.size();
  }

  size_t kv_pages() const override { return pages_.count(); }
  size_t kv_bytes() const override { return pages_.count() * pages_.page_bytes(); }
  void release_pages(size_t first) override { pages_.release_from(first); }
  size_t page_bytes() const override { return pages_.page_bytes(); }
  void read_page(uint32_t page, std::span<uint8_t> out) const override { pages_.read(page, out); }
  void write_page(uint32_t page, std::span<const uint8_t> bytes) override {
    pages_.write(page, bytes);
  }

  // Recurrent mixers are refused: there is no state.
  size_t state_bytes() const override { return 0; }
  void copy_state(uint32_t, uint32_t, size_t) override {}
  void read_state(uint32_t, size_t, std::span<uint8_t> out) const override { no_bytes(out.size()); }
  void write_state(uint32_t, size_t, std::span<const uint8_t> bytes) override {
    no_bytes(bytes.size());
  }

  // Weights go to the GPU here, so that a step finds them there.
  void prepare(const Program& program) override {
    sizes_ = program.plan_buffers();
    resize(1, 1, 1);
    record(device_, config_, program, buffers_, arrays_, weights_, 1,
           config_.vocab.size() > 0 ? 1 : 0, false);
  }
  uint64_t run(const Program& program, const StepArgs& step) override;

 private:
  static void no_bytes(size_t given) {
    if (given != 0)
      throw std::invalid_argument(std::to_string(given) + " bytes of a state that has none");
  }

  // Room for so many rows, output rows and entries of pages. What was recorded before is given up
  // where addresses change.
  void resize(size_t rows, size_t output_rows, size_t pages);
  void grow(size_t rows, size_t output_rows, size_t pages);
  void resize_buffers(size_t rows, size_t output_rows);
  void fill(const Batch& batch);
  template <typename Value>
  Value* array(size_t offset) const {
    return reinterpret_cast<Value*>(step_memory_.data() + offset);
  }

  const ShardConfig& config_;
  Device device_;
  DeviceWeights weights_;
  Pages pages_;
  size_t angles_ = 0;  // of a row

  PerBuffer<BufferPlan> sizes_;
  PerBuffer<StepBuffer> buffers_;
  PerBuffer<Memory> memories_;
  size_t most_rows_ = 0, most_output_rows_ = 0, most_pages_ = 0;

  Memory step_memory_;
  struct {
    size_t places, pages, chosen, cosines, sines, factors;
  } at_ = {};
  StepArrays arrays_;

  std::map<std::tuple<size_t, size_t, bool>, std::vector<Segment>> recordings_;
};

void VulkanBackend::resize(size_t rows, size_t output_rows, size_t pages) {
  if (rows <= most_rows_ && output_rows <= most_output_rows_ && pages <= most_pages_) return;
  recordings_.clear();
  try {
    grow(rows, output_rows, pages);
  } catch (...) {  // what is left has no one size: the next step begins from nothing
    most_rows_ = most_output_rows_ = most_pages_ = 0;
    memories_ = {};
    step_memory_ = Memory();
    throw;
  }
}

void VulkanBackend::grow(size_t rows, size_t output_rows, size_t pages) {
  if (rows > most_rows_ || output_rows > most_output_rows_) {
    most_rows_ = std::max(rows, most_rows_);
    most_output_rows_ = std::max(output_rows, most_output_rows_);
    resize_buffers(most_rows_, most_output_rows_);
  }
  if (pages > most_pages_) most_pages_ = std::max(pages, 2 * most_pages_);
  Arrays arrays;
  at_ = {.places = arrays.add<uint32_t>(2 * most_rows_),
         .pages = arrays.add<uint64_t>(most_pages_),
         .chosen = arrays.add<uint32_t>(most_output_rows_),
         .cosines = arrays.add<float>(most_rows_ * angles_),
         .sines = arrays.add<float>(most_rows_ * angles_),
         .factors = arrays.add<float>(most_rows_ * config_.kinds.size())};
  step_memory_ = Memory();
  step_memory_ = Memory(device_, arrays.bytes(), Place::shared);
  const VkDeviceAddress base = step_memory_.address();
  arrays_ = {.places = base + at_.places,
             .pages = base + at_.pages,
             .chosen = base + at_.chosen,
             .cosines = base + at_.cosines,
             .sines = base + at_.sines,
             .factors = base + at_.factors,
             .angles = angles_,
             .most_rows = most_rows_};
}

void VulkanBackend::resize_buffers(size_t rows, size_t output_rows) {
  sizes_[BufferId::residual].columns = config_.hidden_size;
  sizes_[BufferId::logits].columns = config_.vocab.size();
  for (size_t i = 0; i < kBuffers; ++i) {
    const auto id = static_cast<BufferId>(i);
    const BufferPlan& plan = sizes_[id];
    if (plan.columns == 0) continue;
    // The host reads and writes these: a step's input and output, and what is summed over ranks.
    const bool shared =
        id == BufferId::residual || id == BufferId::logits || id == BufferId::partial;
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

// Positions, pages and angles of the step's rows.
void VulkanBackend::fill(const Batch& batch) {
  auto* places = array<uint32_t>(at_.places);
  auto* pages = array<uint64_t>(at_.pages);
  auto* cosines = array<float>(at_.cosines);
  auto* sines = array<float>(at_.sines);
  uint32_t row = 0, page = 0;
  for (const SequenceStep& sequence : batch.sequences()) {
    const size_t end = sequence.position + sequence.rows, first = page;
    for (size_t p = 0; p * config_.page_size < end; ++p)
      pages[page++] = pages_.address(sequence.pages[p]);
    for (size_t r = 0; r < sequence.rows; ++r, ++row) {
      places[2 * row] = static_cast<uint32_t>(sequence.position + r);
      places[2 * row + 1] = static_cast<uint32_t>(first);
    }
  }
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
      const auto& attention = std::get<AttentionConfig>(config_.kinds[kind].mixer);
      float factor = 1.0f;
      if (const auto& temperature = attention.temperature) {
        const float lengths = std::floor(static_cast<float>(position) / temperature->length);
        factor += temperature->slope * std::log1p(lengths);
      }
      array<float>(at_.factors)[kind * most_rows_ + r] = factor;
    }
  }
  const auto chosen = batch.output_rows();
  std::copy(chosen.begin(), chosen.end(), array<uint32_t>(at_.chosen));
}

uint64_t VulkanBackend::run(const Program& program, const StepArgs& step) {
  const Batch& batch = step.batch;
  const size_t rows = batch.rows().size(), output_rows = batch.output_rows().size();
  if (rows == 0) return 0;
  device_.check();
  size_t pages = 0;
  for (const SequenceStep& sequence : batch.sequences()) {
    const size_t end = sequence.position + sequence.rows;
    for (size_t p = 0; p * config_.page_size < end; ++p, ++pages) pages_.ensure(sequence.pages[p]);
  }
  resize(rows, output_rows, pages);
  fill(batch);
  const std::tuple key(rows, output_rows, step.lane != nullptr);
  if (recordings_.size() >= kMostRecordings && !recordings_.contains(key)) recordings_.clear();
  std::vector<Segment>& segments = recordings_[key];
  if (segments.empty()) {
    segments = record(device_, config_, program, buffers_, arrays_, weights_, rows, output_rows,
                      step.lane != nullptr);
  }
  Memory& residual = memories_[BufferId::residual];
  std::memcpy(residual.data(), step.x.data(), step.x.size_bytes());
  uint64_t sync_ns = 0;
  for (const Segment& segment : segments) {
    device_.run(*segment.commands);
    if (segment.sync == nullptr) continue;
    auto* values = reinterpret_cast<float*>(memories_[segment.sync->buffer].data());
    const size_t columns = segment.sync->columns;
    for (size_t r = 0; r < rows; ++r) {
      if (step.not_finite_at[r] == kFinite && !all_finite(values + r * columns, columns))
        step.not_finite_at[r] = segment.sync->number;
    }
    const Stopwatch watch;
    step.lane->all_reduce(values, rows, columns, segment.sync->exact);
    sync_ns += watch.nanoseconds();
  }
  std::memcpy(step.x.data(), residual.data(), step.x.size_bytes());
  if (output_rows > 0) {
    std::memcpy(step.logits, memories_[BufferId::logits].data(),
                output_rows * config_.vocab.size() * sizeof(float));
  }
  return sync_ns;
}

}  // namespace
}  // namespace vulkan

std::unique_ptr<Backend> make_vulkan_backend(const ShardConfig& config, size_t device) {
  return std::make_unique<vulkan::VulkanBackend>(config, device);
}

}  // namespace hearth
