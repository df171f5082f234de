#include "vulkan/recorder.h"

#include <algorithm>
#include <string>
#include <type_traits>
#include <variant>

#include "layers/attention.h"

namespace hearth::vulkan {
namespace {

// Of one allocation; a larger matrix has its own.
constexpr size_t kWeightRunBytes = size_t{256} << 20;
constexpr size_t kAlignment = 256;
// Shared memory that every device has, in floats; a head lies in it.
constexpr size_t kMostHeadFloats = 1024;
// Workgroups along one side that every device can run.
constexpr size_t kMostGroups = 65535;
// Rows of activations that one workgroup multiplies at once.
constexpr size_t kMostTokens = 8;

size_t divide(size_t count, size_t by) { return (count + by - 1) / by; }

// Push constants, in the layout of the shaders' (std430: addresses first, so that nothing is
// padded).
class Arguments {
 public:
  Arguments& at(VkDeviceAddress address) { return put(address); }
  Arguments& number(size_t value) { return put(static_cast<uint32_t>(value)); }
  Arguments& number(float value) { return put(value); }
  std::span<const uint8_t> bytes() const { return bytes_; }

 private:
  template <typename Value>
  Arguments& put(Value value) {
    const auto* from = reinterpret_cast<const uint8_t*>(&value);
    bytes_.insert(bytes_.end(), from, from + sizeof(value));
    return *this;
  }
  std::vector<uint8_t> bytes_;
};

Access access_of(const Operation& operation) {
  return std::visit([](const auto& each) { return each.access(); }, operation);
}

class Recorder {
 public:
  Recorder(const Device& device, const ShardConfig& config, const PerBuffer<StepBuffer>& buffers,
           const StepArrays& arrays, DeviceWeights& weights, size_t rows, size_t output_rows,
           bool syncs)
      : device_(device),
        config_(config),
        buffers_(buffers),
        arrays_(arrays),
        weights_(weights),
        rows_(rows),
        output_rows_(output_rows),
        syncs_(syncs) {
    begin();
  }

  void add(const Operation& operation) {
    const Access access = access_of(operation);
    const BufferSet scratch = {BufferId::scratch};
    const BufferSet reads = access.reads.without(scratch), writes = access.writes.without(scratch);
    if (reads.intersects(written_) || writes.intersects(written_) || writes.intersects(read_))
      barrier();
    std::visit([this](const auto& each) { run(each); }, operation);
    read_ = read_ | reads;
    written_ = written_ | writes;
  }

  std::vector<Segment> end() {
    segments_.back().commands->end();
    return std::move(segments_);
  }

 private:
  void begin() {
    segments_.push_back({.commands = std::make_unique<Commands>(device_)});
    read_ = written_ = {};
  }
  Commands& commands() { return *segments_.back().commands; }
  void barrier() {
    commands().barrier();
    read_ = written_ = {};
  }

  template <typename Other>
  void run(const Other&) {
    throw DeviceError("an operation of this model has no shader yet");
  }

  void run(const RopeAngles&) {}  // the host makes them: few, and exact to the bit

  void run(const AllReduce& sync) {
    if (!syncs_) return;
    segments_.back().commands->end();
    segments_.back().sync = &sync;
    begin();
  }

  // See norm.comp.
  enum NormFlags : uint32_t { kAdd = 1, kRms = 2, kLayer = 4, kQuantize = 8, kChosenRows = 16 };
  struct NormRun {
    const StepBuffer& x;
    const StepBuffer& y;
    const NormWeights* weights;  // nullptr: a copy
    NormConfig config;
    uint32_t flags;
    size_t rows;
    float factor = 1.0f;
  };

  void norm(const NormRun& each, size_t columns) {
    uint32_t flags = each.flags;
    if (each.weights != nullptr) flags |= each.config.kind == NormKind::rms ? kRms : kLayer;
    const bool bias = each.weights != nullptr && each.config.bias();
    Arguments arguments;
    arguments.at(each.x.x)
        .at(buffers_[BufferId::partial].x)
        .at(each.y.x)
        .at(each.weights != nullptr ? weights_.of(each.weights->weight) : 0)
        .at(bias ? weights_.of(each.weights->bias) : 0)
        .at(each.y.q)
        .at(each.y.scales)
        .at(arrays_.chosen)
        .number(columns)
        .number(each.config.epsilon)
        .number(each.factor)
        .number(size_t{flags});
    commands().dispatch(Shader::norm, {}, arguments.bytes(), static_cast<uint32_t>(each.rows));
  }

  void run(const Norm& operation) {
    norm({.x = buffers_[BufferId::residual],
          .y = buffers_[BufferId::normed],
          .weights = operation.weights,
          .config = operation.config,
          .flags = (operation.add ? kAdd : 0u) | (operation.quantize ? kQuantize : 0u),
          .rows = rows_},
         config_.hidden_size);
  }

  void run(const OutputNorm& operation) {
    norm({.x = buffers_[BufferId::residual],
          .y = buffers_[BufferId::normed],
          .weights = operation.weights,
          .config = operation.config,
          .flags = kChosenRows | (operation.quantize ? kQuantize : 0u),
          .rows = output_rows_},
         config_.hidden_size);
  }

  void run(const AddPartial& operation) {
    const StepBuffer& residual = buffers_[BufferId::residual];
    norm({.x = residual,
          .y = residual,
          .weights = nullptr,
          .config = config_.norm,
          .flags = kAdd,
          .rows = rows_,
          .factor = operation.scale != nullptr ? operation.scale->front() : 1.0f},
         config_.hidden_size);
  }

  void run(const FinishPartial& operation) {
    const StepBuffer& partial = buffers_[BufferId::partial];
    norm({.x = partial,
          .y = partial,
          .weights = operation.weights,
          .config = operation.config,
          .flags = 0,
          .rows = rows_,
          .factor = operation.scale},
         config_.hidden_size);
  }

  void quantize(BufferId id, size_t columns) {
    norm({.x = buffers_[id],
          .y = buffers_[id],
          .weights = nullptr,
          .config = config_.norm,
          .flags = kQuantize,
          .rows = rows_},
         columns);
  }

  void run(const Quantize& operation) { quantize(operation.buffer, operation.columns); }

  void product(const StepBuffer& input, const Matrix& weight, size_t weight_rows,
               const std::vector<float>* bias, const StepBuffer& output, size_t stride,
               size_t rows) {
    const bool blocks = is_quantized(weight.type());
    Arguments arguments;
    arguments.at(weights_.of(weight))
        .at(blocks ? input.q : input.x)
        .at(input.scales)
        .at(output.x)
        .at(bias != nullptr ? weights_.of(*bias) : 0)
        .number(weight.columns())
        .number(weight_rows)
        .number(rows)
        .number(stride == 0 ? weight_rows : stride)
        .number(weight.group_bytes() / 4)
        .number(size_t{bias != nullptr});
    const size_t groups = divide(weight_rows, kGroupRows);
    if (groups > kMostGroups) {
      throw DeviceError("a matrix of " + std::to_string(weight_rows) + " rows: at most " +
                        std::to_string(kMostGroups * kGroupRows) + " fit one dispatch");
    }
    uint32_t tokens = 1;
    while (tokens < std::min(rows, kMostTokens)) tokens *= 2;
    const uint32_t constants[] = {tokens};
    commands().dispatch(products_of(weight.type()), constants, arguments.bytes(),
                        static_cast<uint32_t>(groups), static_cast<uint32_t>(divide(rows, tokens)));
  }

  void run(const Products& operation) {
    const size_t rows = operation.output_rows_only ? output_rows_ : rows_;
    for (const Products::Product& each : operation.products) {
      product(buffers_[operation.input], *each.weight, each.rows, each.bias, buffers_[each.output],
              each.stride, rows);
    }
  }

  void run(const ActivatedProducts& operation) {
    const StepBuffer &gate = buffers_[BufferId::gate], &up = buffers_[BufferId::up];
    const StepBuffer& normed = buffers_[BufferId::normed];
    const size_t units = operation.gate.matrix->rows();
    const bool gated = operation.up.matrix != nullptr;
    product(normed, *operation.gate.matrix, units, operation.gate.bias, gate, 0, rows_);
    if (gated) product(normed, *operation.up.matrix, units, operation.up.bias, up, 0, rows_);
    barrier();
    const GateClamp clamp = operation.clamp.value_or(GateClamp{});
    const uint32_t flags =
        (gated ? 1u : 0u) | (operation.clamp && gated ? 2u : 0u) | (operation.quantize ? 4u : 0u);
    Arguments arguments;
    arguments.at(gate.x)
        .at(up.x)
        .at(gate.q)
        .at(gate.scales)
        .number(units)
        .number(static_cast<size_t>(operation.activation))
        .number(size_t{flags})
        .number(clamp.limit)
        .number(clamp.factor)
        .number(clamp.offset);
    commands().dispatch(Shader::activate, {}, arguments.bytes(),
                        static_cast<uint32_t>(divide(units, 1024)), static_cast<uint32_t>(rows_));
  }

  // Constants of rope.comp and attend.comp.
  std::vector<uint32_t> head_constants(const AttentionShape& shape) const {
    const size_t page = config_.page_size;
    return {static_cast<uint32_t>(shape.heads),
            static_cast<uint32_t>(shape.kv_heads),
            static_cast<uint32_t>(shape.key_size),
            static_cast<uint32_t>(shape.value_size),
            static_cast<uint32_t>(page),
            static_cast<uint32_t>(divide(page, kKeySlots) * kKeySlots),
            config_.kv_type == KvType::f16 ? 1u : 0u};
  }

  // Bytes from a page's start to a layer.
  size_t layer_bytes(size_t layer) const {
    size_t bytes = 0;
    for (size_t before = 0; before < layer; ++before) {
      const auto& attention = std::get<AttentionConfig>(config_.kind_of(before).mixer);
      if (attention.kv_layer) continue;
      bytes += attention.kv_heads.size() * kv_head_bytes(config_.kv_type, attention.key_size,
                                                         attention.value_size, config_.page_size);
    }
    return bytes;
  }

  VkDeviceAddress factors_of(size_t layer) const {
    return arrays_.factors + config_.kind_of_layer[layer] * arrays_.most_rows * sizeof(float);
  }

  void run(const RopeAndStore& operation) {
    const AttentionShape& shape = operation.shape;
    const bool head_norm = operation.query_norm != nullptr;
    Arguments arguments;
    arguments.at(buffers_[BufferId::queries].x)
        .at(buffers_[BufferId::keys].x)
        .at(buffers_[BufferId::values].x)
        .at(arrays_.cosines)
        .at(arrays_.sines)
        .at(factors_of(operation.layer))
        .at(arrays_.places)
        .at(arrays_.pages)
        .at(head_norm ? weights_.of(operation.query_norm->weight) : 0)
        .at(head_norm && operation.store ? weights_.of(operation.key_norm->weight) : 0)
        .number(layer_bytes(operation.layer))
        .number(operation.first_pair)
        .number(operation.pairs)
        .number(arrays_.angles)
        .number(operation.epsilon)
        .number(operation.scale)
        .number(size_t{(head_norm ? 1u : 0u) | (operation.value_norm != nullptr ? 2u : 0u) |
                       (operation.keys_as_values ? 4u : 0u)});
    commands().dispatch(Shader::rope, head_constants(shape), arguments.bytes(),
                        static_cast<uint32_t>(shape.heads + (operation.store ? shape.kv_heads : 0)),
                        static_cast<uint32_t>(rows_));
  }

  void run(const Attend& operation) {
    const AttentionShape& shape = operation.shape;
    Arguments arguments;
    arguments.at(buffers_[BufferId::queries].x)
        .at(buffers_[BufferId::mixed].x)
        .at(buffers_[BufferId::mixer_gate].x)
        .at(operation.sinks != nullptr ? weights_.of(*operation.sinks) : 0)
        .at(arrays_.places)
        .at(arrays_.pages)
        .number(layer_bytes(operation.layer))
        .number(operation.window)
        .number(operation.softcap)
        .number(size_t{(operation.sinks != nullptr ? 1u : 0u) | (operation.gate ? 2u : 0u)});
    commands().dispatch(Shader::attend, head_constants(shape), arguments.bytes(),
                        static_cast<uint32_t>(shape.heads), static_cast<uint32_t>(rows_));
    if (!operation.quantize) return;
    barrier();
    quantize(BufferId::mixed, shape.heads * shape.value_size);
  }

  void run(const FinishLogits& operation) {
    const StepBuffer& logits = buffers_[BufferId::logits];
    Arguments arguments;
    arguments.at(logits.x).number(logits.columns).number(operation.scale).number(operation.softcap);
    commands().dispatch(Shader::logits, {}, arguments.bytes(),
                        static_cast<uint32_t>(divide(logits.columns, 256)),
                        static_cast<uint32_t>(output_rows_));
  }

  const Device& device_;
  const ShardConfig& config_;
  const PerBuffer<StepBuffer>& buffers_;
  const StepArrays& arrays_;
  DeviceWeights& weights_;
  const size_t rows_, output_rows_;
  const bool syncs_;
  std::vector<Segment> segments_;
  BufferSet read_, written_;  // since the last barrier
};

}  // namespace

VkDeviceAddress DeviceWeights::of(const Matrix& matrix) {
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

VkDeviceAddress DeviceWeights::upload(std::span<const uint8_t> bytes) {
  if (memories_.empty() || used_ + bytes.size() > memories_.back().size()) {
    memories_.emplace_back(device_, std::max(bytes.size(), kWeightRunBytes), Place::device);
    used_ = 0;
  }
  const Memory& memory = memories_.back();
  device_.write(memory, used_, bytes);
  const VkDeviceAddress address = memory.address() + used_;
  used_ += divide(bytes.size(), kAlignment) * kAlignment;
  size_bytes_ += bytes.size();
  return address;
}

std::vector<Segment> record(const Device& device, const ShardConfig& config, const Program& program,
                            const PerBuffer<StepBuffer>& buffers, const StepArrays& arrays,
                            DeviceWeights& weights, size_t rows, size_t output_rows, bool syncs) {
  if (rows > kMostGroups) {
    throw DeviceError("a step of " + std::to_string(rows) + " rows: at most " +
                      std::to_string(kMostGroups) + " fit a dispatch");
  }
  Recorder recorder(device, config, buffers, arrays, weights, rows, output_rows, syncs);
  for (const Program::Instruction& instruction : program.instructions()) {
    if (instruction.output_only && output_rows == 0) continue;
    recorder.add(instruction.operation);
  }
  return recorder.end();
}

void check_runs(const ShardConfig& config) {
  const auto refuse = [](const std::string& what) {
    throw DeviceError("Vulkan cannot run " + what + " yet: use --device cpu, or another model");
  };
  if (config.layer_inputs) refuse("per-layer embeddings");
  if (config.kv_type == KvType::q80) refuse("a KV cache of type q80 (use --kv-type f16)");
  for (const BlockConfig& block : config.kinds) {
    if (std::holds_alternative<LatentAttentionConfig>(block.mixer)) refuse("latent attention");
    if (std::holds_alternative<GatedDeltaConfig>(block.mixer)) refuse("the gated delta rule");
    if (block.experts) refuse("mixtures of experts");
    const auto& attention = std::get<AttentionConfig>(block.mixer);
    if (attention.row_norm) refuse("norms of whole rows of queries and keys");
    if (std::max(attention.key_size, attention.value_size) > kMostHeadFloats)
      refuse("heads larger than " + std::to_string(kMostHeadFloats));
  }
}

}  // namespace hearth::vulkan
