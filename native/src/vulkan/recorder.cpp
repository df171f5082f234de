#include "vulkan/recorder.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "vulkan/recording.h"
#include "vulkan/work.h"

namespace hearth::vulkan {
namespace {

// Of one allocation; a larger matrix has its own. The first ones are smaller, as a model may be.
constexpr size_t kWeightRunBytes = size_t{256} << 20, kFirstRunBytes = size_t{16} << 20;
constexpr size_t kAlignment = 256;
// Numbers that fit the shared memory that every device has, 16 KiB, beside what else lies in it.
constexpr size_t kMostHeadFloats = 1024;
constexpr size_t kMostLatentFloats = 1792;
constexpr size_t kMostExperts = 1024;

Access access_of(const Operation& operation) {
  return std::visit([](const auto& each) { return each.access(); }, operation);
}

// All ranks must choose the same experts; a GPU's sums have another order than a CPU's, and its
// roots and quotients are not exact. So where there are other ranks, the host does with the CPU's
// kernels what a choice depends on since the last sync. That are norms of the sum and of the
// residual stream, the router's products, and the choice. It needs nothing that the GPU makes
// meanwhile.
//
// What else changes the residual stream are sums of two numbers, and their bits are the same
// everywhere. (A GPU may take numbers below 2^-126 for zero: beside a row's others they change no
// norm.)
bool host_chooses(const ShardConfig& config, const StepShape& shape) {
  return shape.syncs &&
         std::any_of(config.kinds.begin(), config.kinds.end(),
                     [](const BlockConfig& block) { return block.experts.has_value(); });
}

// Of the operations from one sync to the next, those that the host does: see host_chooses.
struct HostWork {
  std::vector<const Operation*> operations;
  std::set<const Operation*> not_on_gpu;
};

HostWork host_work(std::span<const Program::Instruction> instructions) {
  const auto is = [](const Program::Instruction& each, auto... kinds) {
    return (std::holds_alternative<typename decltype(kinds)::type>(each.operation) || ...);
  };
  const auto end = std::find_if(instructions.begin(), instructions.end(), [&](const auto& each) {
    return is(each, std::type_identity<AllReduce>{});
  });
  const auto route = std::find_if(instructions.begin(), end, [&](const auto& each) {
    return is(each, std::type_identity<Route>{});
  });
  HostWork work;
  for (auto each = instructions.begin(); each != end; ++each) {
    const Operation* operation = &each->operation;
    const bool before_route = route != end && each <= route;
    const bool of_sum =
        is(*each, std::type_identity<FinishPartial>{}, std::type_identity<AddTwoResults>{});
    const bool of_router =
        before_route && access_of(*operation).writes.intersects({BufferId::router});
    const bool norm = before_route && is(*each, std::type_identity<Norm>{});
    if (!of_sum && !of_router && !norm) continue;
    work.operations.push_back(operation);
    if (!norm) work.not_on_gpu.insert(operation);
  }
  return work;
}

}  // namespace

bool Recording::host_chooses() const { return vulkan::host_chooses(config, shape); }

void Recording::begin() {
  segments_.push_back({.commands = std::make_unique<Commands>(device), .on_host = {}});
  read_ = written_ = {};
}

void Recording::barrier() {
  segments_.back().commands->barrier();
  read_ = written_ = {};
}

void Recording::add(const Operation& operation) {
  const Access access = access_of(operation);
  const BufferSet scratch = {BufferId::scratch};
  const BufferSet reads = access.reads.without(scratch), writes = access.writes.without(scratch);
  if (reads.intersects(written_) || writes.intersects(written_) || writes.intersects(read_))
    barrier();
  std::visit([this](const auto& each) { record(*this, each); }, operation);
  read_ = read_ | reads;
  written_ = written_ | writes;
}

Segment& Recording::end_segment() {
  segments_.back().commands->end();
  begin();
  return segments_[segments_.size() - 2];
}

void Recording::make_room(double work) {
  if (work == 0) return;
  if (segments_.back().work > 0 && segments_.back().work + work > most_work_) end_segment();
  segments_.back().work += work;
}

std::vector<Segment> Recording::end() {
  segments_.back().commands->end();
  return std::move(segments_);
}

void Recording::dispatch(Shader shader, std::span<const uint32_t> constants,
                         const Arguments& arguments, size_t x, size_t y) {
  if (std::max(x, y) > kMostGroups) {
    throw DeviceError("a step of " + std::to_string(shape.rows) + " rows: more than " +
                      std::to_string(kMostGroups) + " pieces of work in one dispatch");
  }
  segments_.back().commands->dispatch(shader, constants, arguments.bytes(),
                                      static_cast<uint32_t>(x), static_cast<uint32_t>(y));
}

void record(Recording&, const RopeAngles&) {}  // the host makes them: few, and exact to the bit

void record(Recording&, const NextWeights&) {
  throw std::logic_error("weights on disk are for a CPU");  // see Shard
}

void record(Recording& recording, const AllReduce& operation) {
  if (recording.shape.syncs) recording.end_segment().sync = &operation;
}

VkDeviceAddress DeviceWeights::of(const Matrix& matrix) {
  if (matrix.stored() != 0) return matrix.stored();
  // Known once it is there: an upload may fail, and be tried again.
  if (const auto found = known_.find(&matrix); found != known_.end()) return found->second;
  const VkDeviceAddress address = upload({matrix.group(0), matrix.size_bytes()});
  known_.emplace(&matrix, address);
  return address;
}

VkDeviceAddress DeviceWeights::of(const std::vector<float>& vector) {
  if (const auto found = known_.find(&vector); found != known_.end()) return found->second;
  const auto* bytes = reinterpret_cast<const uint8_t*>(vector.data());
  const VkDeviceAddress address = upload({bytes, vector.size() * sizeof(float)});
  known_.emplace(&vector, address);
  return address;
}

VkDeviceAddress DeviceWeights::of(const std::vector<Matrix>& matrices) {
  if (const auto found = known_.find(&matrices); found != known_.end()) return found->second;
  std::vector<uint64_t> table;
  for (const Matrix& each : matrices) table.push_back(of(each));
  const auto* bytes = reinterpret_cast<const uint8_t*>(table.data());
  const VkDeviceAddress address = upload({bytes, table.size() * sizeof(uint64_t)});
  known_.emplace(&matrices, address);
  return address;
}

VkDeviceAddress DeviceWeights::upload(std::span<const uint8_t> bytes) {
  const VkDeviceAddress address = take(bytes.size());
  write(address, 0, bytes);
  return address;
}

uint64_t DeviceWeights::take(size_t bytes) {
  if (memories_.empty() || used_ + bytes > memories_.at(last_).size()) {
    const size_t run =
        std::min(kFirstRunBytes << std::min<size_t>(memories_.size(), 4), kWeightRunBytes);
    Memory memory(device_, std::max(bytes, run), Place::device);
    last_ = memory.address();
    used_ = 0;
    memories_.emplace(last_, std::move(memory));
  }
  const VkDeviceAddress address = last_ + used_;
  used_ += divide(bytes, kAlignment) * kAlignment;
  return address;
}

void DeviceWeights::write(uint64_t matrix, size_t offset, std::span<const uint8_t> bytes) {
  const auto& [begin, memory] = *std::prev(memories_.upper_bound(matrix));
  device_.write(memory, matrix - begin + offset, bytes);
}

std::vector<Segment> record(const Device& device, const ShardConfig& config, const Program& program,
                            const PerBuffer<StepBuffer>& buffers, const StepArrays& arrays,
                            DeviceWeights& weights, const StepShape& shape, double most_work) {
  Recording recording(device, config, buffers, arrays, weights, shape, most_work);
  const std::span instructions(program.instructions());
  std::set<const Operation*> not_on_gpu;
  for (size_t i = 0; i < instructions.size(); ++i) {
    const Program::Instruction& each = instructions[i];
    if (each.output_only && shape.output_rows == 0) continue;
    if (not_on_gpu.contains(&each.operation)) continue;
    recording.make_room(work_of(each, shape));
    recording.add(each.operation);
    if (!std::holds_alternative<AllReduce>(each.operation) || !recording.host_chooses()) continue;
    HostWork work = host_work(instructions.subspan(i + 1));
    recording.on_host(std::move(work.operations));
    not_on_gpu = std::move(work.not_on_gpu);
  }
  return recording.end();
}

void check_runs(const ShardConfig& config) {
  const auto check = [](size_t size, size_t most, const std::string& what) {
    if (size <= most) return;
    throw DeviceError("Vulkan cannot run " + what + " of " + std::to_string(size) + ", at most " +
                      std::to_string(most) + ": use --device cpu");
  };
  for (const BlockConfig& block : config.kinds) {
    if (block.experts) {
      check(block.experts->count, kMostExperts, "mixtures of experts");
      // Products that every rank makes whole would have to be exact, see host_chooses.
      if (config.layer_inputs) {
        throw DeviceError("Vulkan cannot run experts with per-layer embeddings: use --device cpu");
      }
    }
    if (const auto* attention = std::get_if<AttentionConfig>(&block.mixer)) {
      check(std::max(attention->key_size, attention->value_size), kMostHeadFloats, "heads");
    } else if (const auto* latent = std::get_if<LatentAttentionConfig>(&block.mixer)) {
      check(latent->kv_rank + latent->rope_size, kMostLatentFloats, "latent keys");
    } else {
      const auto& delta = std::get<GatedDeltaConfig>(block.mixer);
      check(std::max(delta.key_size, delta.value_size), kMostHeadFloats, "recurrent heads");
      if (config.max_undo > 0) {
        throw DeviceError(
            "Vulkan cannot take drafts back from a recurrent state yet: use --speculate off, or "
            "--device cpu");
      }
    }
  }
}

}  // namespace hearth::vulkan
