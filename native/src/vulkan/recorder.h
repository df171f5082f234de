// A program's operations as dispatches: what a step of so many rows does on the GPU.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "formats/matrix.h"
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

// The experts that a step's rows have chosen. A pair is a row with one of its experts; pairs of the
// same expert have places side by side. A tile is some of those: what one workgroup multiplies.
struct ChosenExperts {
  VkDeviceAddress choices = 0;    // [rows, 2 * used]: of each row its experts, then their weights
  VkDeviceAddress places = 0;     // u32 [rows, used]: of each row's pairs
  VkDeviceAddress pair_rows = 0;  // u32 [pairs]: of each place
  VkDeviceAddress tiles = 0;      // u32 [tiles, 4]: expert, first place, places; 0 places: none
};

// Arrays that every step fills. Their addresses stay while they have room.
struct StepArrays {
  VkDeviceAddress places = 0;     // u32 [rows, 2]: position, first entry in pages
  VkDeviceAddress pages = 0;      // u64: addresses of all sequences' pages
  VkDeviceAddress chosen = 0;     // u32 [output rows]
  VkDeviceAddress cosines = 0;    // [rows, angles]
  VkDeviceAddress sines = 0;      //
  VkDeviceAddress factors = 0;    // [kinds, most rows]: of queries, see TemperatureConfig
  VkDeviceAddress sequences = 0;  // u32 [sequences, 2]: first row, rows
  VkDeviceAddress of_rows = 0;    // u32 [rows]: the sequence of each
  VkDeviceAddress states = 0;     // u64 [sequences]: addresses of their states
  VkDeviceAddress parts = 0;      // of attention, see attend.comp
  size_t most_chunks = 0;         // of positions, for which `parts` has room
  ChosenExperts host_experts;     // what the host has chosen
  ChosenExperts experts;          // what the GPU has chosen, in its memory
  size_t angles = 0, most_rows = 0;
};

// The weights in the GPU's memory: matrices that were packed to it, and copies of what the host
// holds, vectors and some matrices, which go there when they are asked for.
class DeviceWeights : public MatrixStore {
 public:
  explicit DeviceWeights(const Device& device) : device_(device) {}

  // A matrix is known by its address.
  uint64_t take(size_t bytes) override;
  void write(uint64_t matrix, size_t offset, std::span<const uint8_t> bytes) override;

  VkDeviceAddress of(const Matrix& matrix);
  VkDeviceAddress of(const std::vector<float>& vector);
  // A table of the matrices' addresses.
  VkDeviceAddress of(const std::vector<Matrix>& matrices);

 private:
  VkDeviceAddress upload(std::span<const uint8_t> bytes);

  const Device& device_;
  std::map<const void*, VkDeviceAddress> known_;
  std::map<VkDeviceAddress, Memory> memories_;  // by their beginning
  VkDeviceAddress last_ = 0;                    // of them
  size_t used_ = 0;                             // of the last
};

// A step as a recording depends on it.
struct StepShape {
  size_t rows, output_rows;
  size_t sequences;  // of a program with recurrent mixers; else 0
  bool prompt;       // a sequence has many rows
  bool divided;      // a sequence has more than one chunk of positions
  bool syncs;        // the step has other ranks to sum up with

  auto operator<=>(const StepShape&) const = default;
};

// Commands up to a sync, a cut, or the step's end.
struct Segment {
  std::unique_ptr<Commands> commands;
  double work = 0;  // about: multiply-adds
  const AllReduce* sync = nullptr;
  // Operations for the host, after the sync; see host_chooses in recorder.cpp.
  std::vector<const Operation*> on_host;
};

// most_work: of a segment; one operation may have more. Throws DeviceError.
std::vector<Segment> record(const Device& device, const ShardConfig& config, const Program& program,
                            const PerBuffer<StepBuffer>& buffers, const StepArrays& arrays,
                            DeviceWeights& weights, const StepShape& shape, double most_work);

// Positions that attention adds up apart; see attend.comp.
inline constexpr size_t kChunkPositions = 512;
// Rows that make a step a prompt: with fewer of each sequence, every row has workgroups of its own.
inline constexpr size_t kPromptRows = 4;

// Floats of StepArrays::parts for each chunk.
size_t part_floats(const ShardConfig& config);

// Throws DeviceError for what no shader can do, by name.
void check_runs(const ShardConfig& config);

// The tiles of a step, at most: of how many places each may be, and how many there are room for.
struct ExpertTiles {
  uint32_t places;
  size_t count;
};
// experts: of a layer; used: of each row.
ExpertTiles expert_tiles(size_t experts, size_t used, size_t rows);

// Floats of each row that the GPU needs as scratch memory for the shard's mixers.
size_t scratch_columns(const ShardConfig& config);

}  // namespace hearth::vulkan
