// A program's operations as dispatches: what a step of so many rows does on the GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "hearth/config.h"
#include "layers/program.h"
#include "vulkan/device.h"

namespace hearth::vulkan {

// A buffer of a step in the GPU's memory: [rows, columns], and its quantized copy.
struct StepBuffer {
  VkDeviceAddress x = 0;
  size_t columns = 0;
  VkDeviceAddress q = 0, scales = 0;
};

// Arrays that every step fills. Their addresses stay while they have room.
struct StepArrays {
  VkDeviceAddress places = 0;   // u32 [rows, 2]: position, first entry in pages
  VkDeviceAddress pages = 0;    // u64: addresses of all sequences' pages
  VkDeviceAddress chosen = 0;   // u32 [output rows]
  VkDeviceAddress cosines = 0;  // [rows, angles]
  VkDeviceAddress sines = 0;    //
  VkDeviceAddress factors = 0;  // [kinds, most rows]: of queries, see TemperatureConfig
  size_t angles = 0, most_rows = 0;
};

// The weights in the GPU's memory. What is not there yet, goes there when it is asked for.
class DeviceWeights {
 public:
  explicit DeviceWeights(const Device& device) : device_(device) {}

  VkDeviceAddress of(const Matrix& matrix);
  VkDeviceAddress of(const std::vector<float>& vector);
  size_t size_bytes() const { return size_bytes_; }

 private:
  VkDeviceAddress upload(std::span<const uint8_t> bytes);

  const Device& device_;
  std::map<const void*, VkDeviceAddress> known_;
  std::vector<Memory> memories_;
  size_t used_ = 0;  // of the last of them
  size_t size_bytes_ = 0;
};

// Commands up to a sync, or to the step's end.
struct Segment {
  std::unique_ptr<Commands> commands;
  const AllReduce* sync = nullptr;
};

// syncs: the step has other ranks to sum up with. Throws DeviceError, also for an operation that
// has no shader yet.
std::vector<Segment> record(const Device& device, const ShardConfig& config, const Program& program,
                            const PerBuffer<StepBuffer>& buffers, const StepArrays& arrays,
                            DeviceWeights& weights, size_t rows, size_t output_rows, bool syncs);

// Throws DeviceError for what no shader can do, by name.
void check_runs(const ShardConfig& config);

}  // namespace hearth::vulkan
