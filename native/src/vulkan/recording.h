// A recording under way: what the functions share that record one operation each. These are in
// recorder_*.cpp, by kind of operation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "vulkan/recorder.h"

namespace hearth::vulkan {

// Workgroups along one side that every device can run.
inline constexpr size_t kMostGroups = 65535;

inline size_t divide(size_t count, size_t by) { return (count + by - 1) / by; }

// Groups of eight rows of a matrix. Throws DeviceError for more than fit one dispatch.
size_t groups_of(size_t weight_rows);

// Rows of activations that one workgroup multiplies at once, of so many.
uint32_t tokens_at_once(size_t rows);

// Push constants, in the layout of the shaders' (std430: addresses first, so that nothing is
// padded).
class Arguments {
 public:
  Arguments& at(VkDeviceAddress address) { return put(address); }
  Arguments& number(size_t value) { return put(static_cast<uint32_t>(value)); }
  Arguments& number(float value) { return put(value); }
  std::span<const uint8_t> bytes() const { return std::span(bytes_).first(used_); }

 private:
  template <typename Value>
  Arguments& put(Value value) {
    if (used_ + sizeof(value) > bytes_.size()) throw std::logic_error("too many push constants");
    std::memcpy(bytes_.data() + used_, &value, sizeof(value));
    used_ += sizeof(value);
    return *this;
  }
  std::array<uint8_t, 128> bytes_ = {};  // that many are guaranteed
  size_t used_ = 0;
};

// See norm.comp.
enum NormFlags : uint32_t {
  kAdd = 1,
  kRms = 2,
  kLayer = 4,
  kQuantize = 8,
  kChosenRows = 16,
  kAddToResult = 32
};

// factor * norm of each row of x: to y, which may be x.
struct NormRun {
  StepBuffer x, y;
  const std::vector<float>* weight = nullptr;  // nullptr: a copy
  const std::vector<float>* bias = nullptr;    // of a layer norm, or nullptr
  NormConfig config = {};
  uint32_t flags = 0;  // but for kRms and kLayer
  size_t rows = 0, columns = 0;
  size_t x_stride = 0;  // columns from one row of x to the next; 0: as many as a row has
  float factor = 1.0f;

  // The weights of a norm of the model.
  void set(const NormWeights& weights, const NormConfig& norm) {
    weight = &weights.weight;
    bias = norm.bias() ? &weights.bias : nullptr;
    config = norm;
  }
};

// activation(gate) * up in place, see activate.comp.
struct ActivateRun {
  StepBuffer gate;
  VkDeviceAddress up = 0;  // 0: not gated
  size_t up_stride = 0;    // columns from one row of up to the next
  size_t rows = 0, units = 0;
  Activation activation = Activation::silu;
  std::optional<GateClamp> clamp = {};
  bool quantize = false;
};

class Recording {
 public:
  Recording(const Device& of_device, const ShardConfig& of_config,
            const PerBuffer<StepBuffer>& of_buffers, const StepArrays& of_arrays,
            DeviceWeights& of_weights, const StepShape& of_shape, double most_work)
      : device(of_device),
        config(of_config),
        buffers(of_buffers),
        arrays(of_arrays),
        weights(of_weights),
        shape(of_shape),
        most_work_(most_work) {
    begin();
  }

  const Device& device;
  const ShardConfig& config;
  const PerBuffer<StepBuffer>& buffers;
  const StepArrays& arrays;
  DeviceWeights& weights;
  const StepShape shape;

  // Dispatches what an operation writes and reads, behind a barrier where it needs one.
  void add(const Operation& operation);
  // Ends the commands so far: those that follow wait for the host.
  Segment& end_segment();
  // Before an operation of so much work: cuts where the commands so far would have too much.
  void make_room(double work);
  // Operations for the host, before the commands that follow.
  void on_host(std::vector<const Operation*> operations) {
    segments_[segments_.size() - 2].on_host = std::move(operations);
  }
  // The experts are chosen there.
  bool host_chooses() const;
  const ChosenExperts& experts() const {
    return host_chooses() ? arrays.host_experts : arrays.experts;
  }
  std::vector<Segment> end();

  // Throws DeviceError for more workgroups than every device can run.
  void dispatch(Shader shader, std::span<const uint32_t> constants, const Arguments& arguments,
                size_t x, size_t y = 1);
  // Between two dispatches of one operation, of which the second reads what the first wrote.
  void barrier();

  void norm(const NormRun& run);
  // Makes the quantized copy of so many rows.
  void quantize(const StepBuffer& buffer, size_t rows, size_t columns);
  void activate(const ActivateRun& run);

 private:
  void begin();

  const double most_work_;
  std::vector<Segment> segments_;
  BufferSet read_, written_;  // since the last barrier
};

void record(Recording& recording, const RopeAngles& operation);
void record(Recording& recording, const AddPartial& operation);
void record(Recording& recording, const FinishPartial& operation);
void record(Recording& recording, const Norm& operation);
void record(Recording& recording, const OutputNorm& operation);
void record(Recording& recording, const Products& operation);
void record(Recording& recording, const RowNorm& operation);
void record(Recording& recording, const Quantize& operation);
void record(Recording& recording, const SumSquares& operation);
void record(Recording& recording, const RopeAndStore& operation);
void record(Recording& recording, const LatentStore& operation);
void record(Recording& recording, const HeadProducts& operation);
void record(Recording& recording, const Attend& operation);
void record(Recording& recording, const DeltaRule& operation);
void record(Recording& recording, const ActivatedProducts& operation);
void record(Recording& recording, const Route& operation);
void record(Recording& recording, const ExpertProducts& operation);
void record(Recording& recording, const ExpertOutputs& operation);
void record(Recording& recording, const Combine& operation);
void record(Recording& recording, const AddTwoResults& operation);
void record(Recording& recording, const JoinLayerInputs& operation);
void record(Recording& recording, const GateLayerInput& operation);
void record(Recording& recording, const NextWeights& operation);
void record(Recording& recording, const AllReduce& operation);
void record(Recording& recording, const FinishLogits& operation);

}  // namespace hearth::vulkan
