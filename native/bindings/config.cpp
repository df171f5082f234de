// The shape of a shard, from keyword arguments.
#include "hearth/config.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace hearth::bindings {
namespace {

using Pair = std::pair<size_t, size_t>;

Span span(Pair pair) { return {pair.first, pair.second}; }

template <typename Value, size_t kCount>
Value parse(const std::array<std::pair<const char*, Value>, kCount>& table, const char* what,
            const std::string& name) {
  std::string names;
  for (const auto& [each, value] : table) {
    if (name == each) return value;
    names += (names.empty() ? "" : ", ") + std::string(each);
  }
  throw std::invalid_argument(std::string(what) + " '" + name.substr(0, 64) + "'; there are " +
                              names);
}

constexpr std::array<std::pair<const char*, NormKind>, 2> kNorms = {
    {{"rms", NormKind::rms}, {"layer", NormKind::layer}}};
constexpr std::array<std::pair<const char*, RouterScores>, 2> kScores = {
    {{"softmax", RouterScores::softmax}, {"sigmoid", RouterScores::sigmoid}}};
constexpr std::array<std::pair<const char*, Activation>, kActivations> kActivationNames = {
    {{"silu", Activation::silu},
     {"gelu_tanh", Activation::gelu_tanh},
     {"gelu", Activation::gelu},
     {"relu_squared", Activation::relu_squared}}};

RopeConfig make_rope(std::vector<float> frequencies, float magnitude) {
  return {.frequencies = std::move(frequencies), .magnitude = magnitude};
}

AttentionConfig make_attention(Pair heads, Pair kv_heads, size_t key_size, size_t value_size,
                               float scale, std::optional<size_t> rope, size_t window,
                               float softcap, bool bias, bool output_bias, bool head_norm,
                               bool sinks, bool gate, std::optional<Pair> row_norm,
                               std::optional<std::pair<float, float>> temperature, bool value_norm,
                               bool keys_as_values, std::optional<size_t> kv_layer) {
  std::optional<RowNormConfig> whole_rows;
  if (row_norm) whole_rows = {.heads = row_norm->first, .kv_heads = row_norm->second};
  std::optional<TemperatureConfig> growth;
  if (temperature) growth = {.slope = temperature->first, .length = temperature->second};
  return {.heads = span(heads),
          .kv_heads = span(kv_heads),
          .key_size = key_size,
          .value_size = value_size,
          .scale = scale,
          .rope = rope,
          .window = window,
          .softcap = softcap,
          .bias = bias,
          .output_bias = output_bias,
          .head_norm = head_norm,
          .sinks = sinks,
          .gate = gate,
          .row_norm = whole_rows,
          .temperature = growth,
          .value_norm = value_norm,
          .keys_as_values = keys_as_values,
          .kv_layer = kv_layer};
}

LatentAttentionConfig make_latent_attention(Pair heads, size_t query_rank, size_t kv_rank,
                                            size_t nope_size, size_t rope_size, size_t value_size,
                                            float scale, std::optional<size_t> rope,
                                            float norm_epsilon) {
  return {.heads = span(heads),
          .query_rank = query_rank,
          .kv_rank = kv_rank,
          .nope_size = nope_size,
          .rope_size = rope_size,
          .value_size = value_size,
          .scale = scale,
          .rope = rope,
          .norm_epsilon = norm_epsilon};
}

GateClamp make_clamp(float limit, float factor, float offset) {
  return {.limit = limit, .factor = factor, .offset = offset};
}

GatedDeltaConfig make_gated_delta(Pair key_heads, size_t group, size_t tile, size_t key_size,
                                  size_t value_size, size_t width, const std::string& activation) {
  return {.key_heads = span(key_heads),
          .group = group,
          .tile = tile,
          .key_size = key_size,
          .value_size = value_size,
          .width = width,
          .activation = parse(kActivationNames, "activation", activation)};
}

FeedForwardConfig make_feed_forward(Pair units, const std::string& activation, bool gated,
                                    bool bias, bool output_bias, std::optional<GateClamp> clamp) {
  return {.units = span(units),
          .activation = parse(kActivationNames, "activation", activation),
          .gated = gated,
          .bias = bias,
          .output_bias = output_bias,
          .clamp = clamp};
}

ExpertsConfig make_experts(size_t count, size_t used, FeedForwardConfig expert,
                           const std::string& scores, bool normalize, float scale, bool router_bias,
                           bool choice_bias, size_t groups, size_t used_groups,
                           bool expert_scales) {
  return {.count = count,
          .used = used,
          .expert = expert,
          .scores = parse(kScores, "scores", scores),
          .normalize = normalize,
          .scale = scale,
          .router_bias = router_bias,
          .choice_bias = choice_bias,
          .groups = groups,
          .used_groups = used_groups,
          .expert_scales = expert_scales};
}

BlockConfig make_block(MixerConfig mixer, FeedForwardConfig feed_forward,
                       std::optional<ExpertsConfig> experts, bool feed_forward_gate,
                       bool input_norms, bool output_norms, float residual_scale,
                       bool separate_norms, bool layer_scale) {
  return {.mixer = mixer,
          .feed_forward = feed_forward,
          .experts = experts,
          .feed_forward_gate = feed_forward_gate,
          .input_norms = input_norms,
          .output_norms = output_norms,
          .residual_scale = residual_scale,
          .separate_norms = separate_norms,
          .layer_scale = layer_scale};
}

LayerInputsConfig make_layer_inputs(size_t size, size_t layers, const std::string& activation,
                                    float embedding_scale, float projection_scale,
                                    float sum_scale) {
  return {.size = size,
          .layers = layers,
          .activation = parse(kActivationNames, "activation", activation),
          .embedding_scale = embedding_scale,
          .projection_scale = projection_scale,
          .sum_scale = sum_scale};
}

ShardConfig make_config(size_t hidden_size, Pair layers, std::vector<BlockConfig> kinds,
                        std::vector<size_t> kind_of_layer, const std::string& norm,
                        float norm_epsilon, std::vector<RopeConfig> ropes,
                        const std::string& kv_type, size_t page_size, size_t max_pages,
                        size_t max_step_tokens, size_t max_sequences, size_t max_undo,
                        bool embedding, size_t vocab_size, float embedding_scale,
                        size_t learned_positions, Pair vocab, bool head_from_embedding,
                        bool head_bias, float logit_scale, float logit_softcap,
                        std::optional<LayerInputsConfig> layer_inputs) {
  return {.hidden_size = hidden_size,
          .layers = span(layers),
          .kinds = std::move(kinds),
          .kind_of_layer = std::move(kind_of_layer),
          .norm = {.kind = parse(kNorms, "norm", norm), .epsilon = norm_epsilon},
          .ropes = std::move(ropes),
          .kv_type = parse_kv_type(kv_type),
          .page_size = page_size,
          .max_pages = max_pages,
          .max_step_tokens = max_step_tokens,
          .max_sequences = max_sequences,
          .max_undo = max_undo,
          .embedding = embedding,
          .vocab_size = vocab_size,
          .embedding_scale = embedding_scale,
          .learned_positions = learned_positions,
          .vocab = span(vocab),
          .head_from_embedding = head_from_embedding,
          .head_bias = head_bias,
          .logit_scale = logit_scale,
          .logit_softcap = logit_softcap,
          .layer_inputs = layer_inputs};
}

}  // namespace

void bind_config(py::module_& module) {
  using namespace py::literals;
  py::class_<RopeConfig>(module, "RopeConfig", "A rotary position embedding.")
      .def(py::init(&make_rope), py::kw_only(), "frequencies"_a, "magnitude"_a = 1.0f);
  py::class_<AttentionConfig>(module, "AttentionConfig", "The attention of a kind of block.")
      .def(py::init(&make_attention), py::kw_only(), "heads"_a, "kv_heads"_a, "key_size"_a,
           "value_size"_a, "scale"_a, "rope"_a, "window"_a = 0, "softcap"_a = 0.0f,
           "bias"_a = false, "output_bias"_a = false, "head_norm"_a = false, "sinks"_a = false,
           "gate"_a = false, "row_norm"_a = std::nullopt, "temperature"_a = std::nullopt,
           "value_norm"_a = false, "keys_as_values"_a = false, "kv_layer"_a = std::nullopt);
  py::class_<LatentAttentionConfig>(module, "LatentAttentionConfig",
                                    "The latent attention of a kind of block.")
      .def(py::init(&make_latent_attention), py::kw_only(), "heads"_a, "query_rank"_a = 0,
           "kv_rank"_a, "nope_size"_a, "rope_size"_a, "value_size"_a, "scale"_a, "rope"_a,
           "norm_epsilon"_a = 1e-6f);
  py::class_<GatedDeltaConfig>(module, "GatedDeltaConfig",
                               "The gated delta rule of a kind of block.")
      .def(py::init(&make_gated_delta), py::kw_only(), "key_heads"_a, "group"_a, "tile"_a = 1,
           "key_size"_a, "value_size"_a, "width"_a, "activation"_a = "silu");
  py::class_<GateClamp>(module, "GateClamp", "The limits of a gated feed-forward.")
      .def(py::init(&make_clamp), py::kw_only(), "limit"_a, "factor"_a = 1.0f, "offset"_a = 0.0f);
  py::class_<FeedForwardConfig>(module, "FeedForwardConfig", "The feed-forward of a kind of block.")
      .def(py::init(&make_feed_forward), py::kw_only(), "units"_a, "activation"_a = "silu",
           "gated"_a = true, "bias"_a = false, "output_bias"_a = false, "clamp"_a = std::nullopt);
  py::class_<ExpertsConfig>(module, "ExpertsConfig", "The experts of a kind of block.")
      .def(py::init(&make_experts), py::kw_only(), "count"_a, "used"_a, "expert"_a,
           "scores"_a = "softmax", "normalize"_a = true, "scale"_a = 1.0f, "router_bias"_a = false,
           "choice_bias"_a = false, "groups"_a = 1, "used_groups"_a = 1, "expert_scales"_a = false);
  py::class_<BlockConfig>(module, "BlockConfig", "A kind of block.")
      .def(py::init(&make_block), py::kw_only(), "mixer"_a, "feed_forward"_a,
           "experts"_a = std::nullopt, "feed_forward_gate"_a = false, "input_norms"_a = true,
           "output_norms"_a = false, "residual_scale"_a = 1.0f, "separate_norms"_a = false,
           "layer_scale"_a = false);
  py::class_<LayerInputsConfig>(module, "LayerInputsConfig", "Inputs of each layer's own.")
      .def(py::init(&make_layer_inputs), py::kw_only(), "size"_a, "layers"_a, "activation"_a,
           "embedding_scale"_a = 1.0f, "projection_scale"_a = 1.0f, "sum_scale"_a = 1.0f);
  py::class_<ShardConfig>(module, "ShardConfig", "The shape of a shard.")
      .def(py::init(&make_config), py::kw_only(), "hidden_size"_a, "layers"_a, "kinds"_a,
           "kind_of_layer"_a, "norm"_a = "rms", "norm_epsilon"_a, "ropes"_a, "kv_type"_a,
           "page_size"_a, "max_pages"_a, "max_step_tokens"_a, "max_sequences"_a = 0,
           "max_undo"_a = 0, "embedding"_a, "vocab_size"_a, "embedding_scale"_a = 1.0f,
           "learned_positions"_a = 0, "vocab"_a, "head_from_embedding"_a = false,
           "head_bias"_a = false, "logit_scale"_a = 1.0f, "logit_softcap"_a = 0.0f,
           "layer_inputs"_a = std::nullopt);
}

}  // namespace hearth::bindings
