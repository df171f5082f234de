// The shape of a shard, as data: its blocks by kind, and what comes before and after them. The core
// never asks which family a model is of.
//
// A block (a layer of the model) is a mixer and then a feed-forward. Each reads a norm of the
// residual stream and adds its result to that stream. Layers of one kind have the same shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "hearth/types.h"

namespace hearth {

struct Span {
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
};

// rms: x / sqrt(mean(x^2) + epsilon) * weight (Zhang, Sennrich: Root mean square layer
// normalization, 2019). layer: (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias.
enum class NormKind : uint8_t { rms, layer };

// Of all norms of the model.
struct NormConfig {
  NormKind kind = NormKind::rms;
  float epsilon = 1e-5f;

  bool bias() const { return kind == NormKind::layer; }
};

// Rotary position embedding of a head's first 2 * frequencies.size() elements, in pairs (i, i +
// frequencies.size()).
struct RopeConfig {
  std::vector<float> frequencies;  // radians per position
  float magnitude = 1.0f;          // factor of cos and sin
};

// RMS norm of a position's queries, all heads together, and of its keys; before the rotation. The
// sum of squares is one over all ranks, so these are heads of the whole model.
struct RowNormConfig {
  size_t heads = 0, kv_heads = 0;
};

// Queries grow with their position: times 1 + slope * log(1 + floor(position / length)).
struct TemperatureConfig {
  float slope = 0.0f;
  float length = 1.0f;  // positions
};

struct AttentionConfig {
  Span heads, kv_heads;  // counted over the whole model
  size_t key_size = 0;   // of a query head and a key head
  size_t value_size = 0;
  float scale = 0.0f;          // of the scores
  std::optional<size_t> rope;  // index in ShardConfig::ropes
  size_t window = 0;           // positions that a query sees, with its own; 0: all up to its own
  float softcap = 0.0f;        // scores become softcap * tanh(scores / softcap); 0: they stay
  bool bias = false;           // of queries, keys and values
  bool output_bias = false;    // this rank adds the bias of the output
  bool head_norm = false;      // RMS norm of each query and key head, before the rotation
  bool sinks = false;          // one more score for each head, which has no value
  bool gate = false;           // the result times sigmoid of a product of its own
  std::optional<RowNormConfig> row_norm = {};
  std::optional<TemperatureConfig> temperature = {};
  bool value_norm = false;      // RMS norm of each value head, without weights
  bool keys_as_values = false;  // values are the keys before their norm and rotation
  // An earlier layer of the same heads, counted over the whole model, whose keys and values are
  // read: the layer has none of its own.
  std::optional<size_t> kv_layer = {};
};

// Multi-head latent attention (DeepSeek-AI: DeepSeek-V2, 2024). The keys and values of all heads
// are products of one normed vector, the latent; the KV cache holds only that, and one rotated key
// which all heads share. Every rank computes both whole, and some of the heads.
struct LatentAttentionConfig {
  Span heads;                  // counted over the whole model
  size_t query_rank = 0;       // width of a normed vector whose products the queries are; 0: none
  size_t kv_rank = 0;          // width of the latent
  size_t nope_size = 0;        // of a query head: the part that is not rotated
  size_t rope_size = 0;        // and the part that is, behind it; also the width of the rotated key
  size_t value_size = 0;       // of a head
  float scale = 0.0f;          // of the scores
  std::optional<size_t> rope;  // index in ShardConfig::ropes, of the rotated part
  float norm_epsilon = 1e-6f;  // of the latents' norms
};

// Functions of the feed-forward and of convolutions, in Kernels' order.
enum class Activation : uint8_t { silu, gelu_tanh, gelu, relu_squared };
inline constexpr size_t kActivations = 4;

// The gated delta rule (see layers/gated_delta.h): a recurrent mixer, whose state of a sequence has
// a fixed size.
struct GatedDeltaConfig {
  Span key_heads;                            // counted over the whole model; whole tiles
  size_t group = 1;                          // value heads of each key head
  size_t tile = 1;                           // key heads whose value heads lie by turns
  size_t key_size = 0, value_size = 0;       // of a head
  size_t width = 0;                          // positions that the convolution sees, with its own
  Activation activation = Activation::silu;  // after the convolution
};

// Floats of the state of one sequence and key head.
size_t gated_delta_floats(size_t group, size_t key_size, size_t value_size, size_t width);
// Floats of one row of the log of such a state; see shard/states.h.
size_t gated_delta_log_floats(size_t group, size_t key_size, size_t value_size);

// Most positions that a sequence's state can go back (ShardConfig::max_undo).
inline constexpr size_t kMostUndo = 16;

// Limits of a gated feed-forward (OpenAI: gpt-oss-120b & gpt-oss-20b model card, 2025): with gate'
// = min(gate, limit) and up' within [-limit, limit], activation(factor * gate') / factor * (up' +
// offset).
struct GateClamp {
  float limit = 0.0f;
  float factor = 1.0f;
  float offset = 0.0f;
};

struct FeedForwardConfig {
  Span units;  // of the inner width, counted over the whole model
  Activation activation = Activation::silu;
  bool gated = true;         // down (activation(gate x) * (up x)); else down activation(gate x)
  bool bias = false;         // of gate and up
  bool output_bias = false;  // this rank adds the bias of the output
  std::optional<GateClamp> clamp = {};  // only where it is gated
};

// The way a router's products become the weights of experts: all together by softmax, or each by
// sigmoid.
enum class RouterScores : uint8_t { softmax, sigmoid };

// Experts (Shazeer et al.: Outrageously large neural networks, 2017): feed-forwards, of which a
// router chooses a few for every row. Every rank has a part of each, and the whole router.
struct ExpertsConfig {
  size_t count = 0, used = 0;
  FeedForwardConfig expert;  // the shape of each, with its biases
  RouterScores scores = RouterScores::softmax;
  bool normalize = true;     // the weights of the chosen add up to 1
  float scale = 1.0f;        // and are then multiplied by this
  bool router_bias = false;  // of the router's products
  bool choice_bias = false;  // added to the scores for the choice alone
  // Only experts of the best `used_groups` groups are chosen, by the sum of the two best scores of
  // each (DeepSeek-AI: DeepSeek-V3 technical report, 2024).
  size_t groups = 1, used_groups = 1;
  bool expert_scales = false;  // each expert's weight is multiplied by a number of its own, last
};

// The part of a block that mixes the positions of a sequence.
using MixerConfig = std::variant<AttentionConfig, LatentAttentionConfig, GatedDeltaConfig>;

struct BlockConfig {
  MixerConfig mixer;
  FeedForwardConfig feed_forward;  // of all rows; without units where there are only experts
  std::optional<ExpertsConfig> experts = {};  // their result is added to the feed-forward's
  bool feed_forward_gate = false;  // beside experts: the feed-forward's result times sigmoid of a
                                   // product of its own
  bool input_norms = true;         // of what the mixer and the feed-forward read
  bool output_norms = false;       // of what they add
  float residual_scale = 1.0f;     // factor of what they add
  // The feed-forward and the experts beside it each read a norm of their own, and the router an RMS
  // norm; and each of their two results is normed before they are added.
  bool separate_norms = false;
  bool layer_scale = false;  // after the block, the residual stream is multiplied by a number
};

// Inputs of a layer's own for every row, of `size` elements (per-layer embeddings, as in Gemma 3n).
// Made once, before the first layer, of the embedding x and of a row e of a second embedding:
//   (norm(projection x * projection_scale) + e * embedding_scale) * sum_scale
// A layer ends with residual += norm(out (activation(gate residual) * its input)).
struct LayerInputsConfig {
  size_t size = 0;
  size_t layers = 0;  // of the whole model
  Activation activation = Activation::gelu_tanh;
  float embedding_scale = 1.0f;
  float projection_scale = 1.0f;
  float sum_scale = 1.0f;

  size_t width() const { return layers * size; }  // of a row: of all layers
};

struct ShardConfig {
  size_t hidden_size = 0;  // the width of the residual stream
  Span layers;
  std::vector<BlockConfig> kinds;
  std::vector<size_t> kind_of_layer;  // for each of `layers`: an index in `kinds`
  NormConfig norm;
  std::vector<RopeConfig> ropes;
  KvType kv_type = KvType::f32;
  size_t page_size = 0, max_pages = 0, max_step_tokens = 0;
  size_t max_sequences = 0;  // slots for the state of recurrent mixers; not used without such
  size_t max_undo = 0;       // positions that such a state can go back; see SequenceStep::undo

  bool embedding = false;  // the shard holds it
  size_t vocab_size = 0;
  float embedding_scale = 1.0f;
  size_t learned_positions = 0;  // rows of learned positions, added to the embedding; 0: none

  Span vocab;                        // rows of the head; empty when this is not the last stage
  bool head_from_embedding = false;  // the head is the embedding's rows [vocab.begin, vocab.end)
  bool head_bias = false;
  float logit_scale = 1.0f;
  float logit_softcap = 0.0f;  // as AttentionConfig::softcap
  std::optional<LayerInputsConfig> layer_inputs = {};

  // The width of a row of activations, as stages hand it on: the residual stream, then the inputs
  // of all layers.
  size_t row_size() const { return hidden_size + (layer_inputs ? layer_inputs->width() : 0); }
  const BlockConfig& kind_of(size_t layer) const { return kinds[kind_of_layer[layer]]; }

  // Throws std::invalid_argument, naming the value that is out of range.
  void validate() const;
};

}  // namespace hearth
