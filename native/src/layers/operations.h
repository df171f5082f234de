// The operations of a forward pass: coarse ones, about nine a block, as plain data. All threads of
// the pool run each operation, and each thread does its part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "formats/matrix.h"
#include "hearth/config.h"
#include "layers/buffers.h"
#include "layers/norm.h"

namespace hearth {

struct Experts;
class LayerStream;
struct GatedDelta;
struct Pass;

// Division of an operation's work between the threads.
enum class Division : uint8_t {
  rows,      // thread t has the same consecutive rows in all such operations
  stealing,  // by work stealing (WorkQueue), which serves one operation between two barriers
  other,
};

// Buffers that an operation reads and writes. A buffer changed in place counts as both.
struct Access {
  BufferSet reads, writes;
  Division division;
};

// cos, sin = the rotary angles of each row's position: of one embedding behind the other.
struct RopeAngles {
  std::span<const RopeConfig> ropes;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// residual = (residual + partial) * scale
struct AddPartial {
  const std::vector<float>* scale = nullptr;  // one number; nullptr: 1

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// partial = scale * norm(partial), once it is summed over all ranks.
struct FinishPartial {
  const NormWeights* weights;  // nullptr: no norm
  NormConfig config;
  float scale;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// normed = norm of the residual, quantized where the products that follow need it.
struct Norm {
  const NormWeights* weights;  // nullptr: a copy
  NormConfig config;
  bool add;  // residual += partial first
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// The same of the output rows only: row i of normed is output row i's.
struct OutputNorm {
  const NormWeights* weights;
  NormConfig config;
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// Matrix products of one input, divided by groups of weight rows, with work stealing.
struct Products {
  struct Product {
    const Matrix* weight;
    BufferId output;
    size_t rows;  // of the weight: its first ones
    const std::vector<float>* bias = nullptr;
    size_t stride = 0;  // columns of the output; 0: as many as rows
  };
  BufferId input;
  std::vector<Product> products;
  bool output_rows_only = false;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// RMS norm of whole rows of a buffer, in place, quantized where the products that follow need it.
struct RowNorm {
  BufferId buffer;
  const NormWeights* weights;
  float epsilon;
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// Quantizes whole rows of a buffer.
struct Quantize {
  BufferId buffer;
  size_t columns;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

struct AttentionShape {
  size_t heads, kv_heads, key_size, value_size;

  size_t queries_per_kv_head() const { return heads / kv_heads; }
};

// row_squares = the sums of squares of a row's queries and of its keys. A KV head that several
// ranks have is counted by the one that has its first query head.
struct SumSquares {
  AttentionShape shape;
  size_t first_counted, counted;  // KV heads

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// Queries and keys are normed and rotated; queries are scaled; keys and values go to the KV cache,
// where the layer has its own.
struct RopeAndStore {
  AttentionShape shape;
  size_t layer;  // of the shard
  float scale;
  std::optional<TemperatureConfig> temperature;
  size_t first_pair, pairs;       // of the angles; no pairs: no rotation
  const NormWeights* query_norm;  // of each head, or of a whole row; nullptr: none
  const NormWeights* key_norm;
  std::optional<RowNormConfig> row_norm;  // the norms are of whole rows
  float epsilon;
  const std::vector<float>* value_norm = nullptr;  // of each head; nullptr: none
  bool keys_as_values = false;                     // see AttentionConfig
  bool store = true;                               // the layer has keys and values of its own

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// Of latent attention: full_queries are cut into head_queries and the rotated part of queries, both
// scaled; the latent in keys is normed, the key behind it rotated, and both go to the KV cache.
struct LatentStore {
  LatentAttentionConfig config;
  size_t layer;              // of the shard
  size_t first_pair, pairs;  // of the angles; no pairs: no rotation
  const NormWeights* latent_norm;
  float epsilon;
  bool quantize;  // head_queries

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// Products of each head's own weights: columns [h * stride, + weight rows) of output = weights[h] x
// the rows of head h. input: [heads, rows, columns of the weights].
struct HeadProducts {
  BufferId input;
  const std::vector<Matrix>* weights;
  BufferId output;
  size_t stride;  // columns of output from one head to the next

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// mixed = softmax(queries keys^T) values, over the pages of each row's sequence.
struct Attend {
  AttentionShape shape;
  size_t kind;    // of the block: whose ranges of rows
  size_t layer;   // of the shard
  size_t window;  // see AttentionConfig
  float softcap;
  const std::vector<float>* sinks;  // [heads], or nullptr
  bool gate;                        // mixed *= sigmoid(mixer_gate)
  // Of latent attention: values are the first elements of keys, and mixed is [heads, rows,
  // value_size].
  bool latent;
  bool quantize;  // mixed too; only where a head is a whole number of blocks

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

struct GatedDeltaShape {
  size_t key_heads, group, tile, key_size, value_size, width;  // see GatedDeltaConfig

  size_t value_heads() const { return key_heads * group; }
  // The number, among all, of value head n of a key head.
  size_t value_head(size_t key_head, size_t n) const {
    return key_head / tile * tile * group + n * tile + key_head % tile;
  }
};

// mixed = the gated delta rule of queries, keys, values, and the mixer's gate, decay and beta,
// which updates each sequence's state row by row.
struct DeltaRule {
  GatedDeltaShape shape;
  size_t layer;  // of the shard
  const GatedDelta* weights;
  Activation activation;  // after the convolution
  float epsilon;
  bool quantize;  // mixed too; only where a head is a whole number of blocks

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// gate = activation(gate weights x normed) * (up weights x normed), quantized where the next
// product needs it. Divided as Products are.
struct ActivatedProducts {
  struct Weights {
    const Matrix* matrix;
    const std::vector<float>* bias;  // nullptr: none
  };
  Weights gate, up;  // up.matrix: nullptr where it is not gated
  Activation activation;
  std::optional<GateClamp> clamp;
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// choices = the experts of each row and their weights, by the router's products; and
// Pass::expert_rows, the pairs of row and expert, expert by expert.
struct Route {
  ExpertsConfig config;
  const std::vector<float>* choice_bias;  // nullptr: none
  const std::vector<float>* scales;       // of each expert; nullptr: none

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// expert_gate = activation(gate x) * (up x) of each pair, quantized where the next product needs
// it. As ActivatedProducts, over all experts that were chosen. The rows of experts with more than
// one come first to expert_input, side by side.
struct ExpertProducts {
  const Experts* experts;
  FeedForwardConfig config;
  size_t used;                       // experts of each row
  bool copy_floats, copy_quantized;  // of an input: what its products read
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;

 private:
  void gather(Pass& pass, size_t thread) const;
};

// expert_output = down expert_gate of each pair
struct ExpertOutputs {
  const Experts* experts;
  size_t used;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// partial = the experts' outputs by their weights, after the feed-forward's result. With separate
// norms these are the second half of two_results.
struct Combine {
  size_t hidden;
  const std::vector<float>* bias;  // of the outputs, [experts, hidden]; nullptr: none
  size_t used;
  bool feed_forward;  // partial holds its result
  bool gate;          // of the feed-forward: see BlockConfig
  bool separate;      // norms

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// partial = norm(first half of two_results) + norm(second half), once they are summed over all
// ranks.
struct AddTwoResults {
  const NormWeights* first;
  const NormWeights* second;
  NormConfig config;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// layer_inputs, which hold rows of the second embedding, become what LayerInputsConfig says, of
// layer_projected.
struct JoinLayerInputs {
  LayerInputsConfig config;
  const NormWeights* weights;
  NormConfig norm;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// layer_gate = activation(layer_gate) * the layer's input, quantized where the next product needs
// it.
struct GateLayerInput {
  LayerInputsConfig config;
  size_t layer;  // of the model
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// The weights of a layer that lie on disk are in memory from here to the next such operation.
// Barriers before and after are its own.
struct NextWeights {
  LayerStream* stream;
  std::optional<size_t> layer;  // of the shard; nullopt: only the last ones are not used any more

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// A buffer = its sum over all ranks. Barriers before and after are its own; without a lane, which
// is known only in a step, it is one barrier.
//
// Also notes the rows of this rank's own part that are not finite. (Costs under 1 % of a step: one
// look at values that are in the cache.)
struct AllReduce {
  BufferId buffer = BufferId::partial;
  size_t columns;
  bool exact = false;   // see Lane
  uint32_t number = 0;  // counts the program's syncs; set by Program::add

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// logits = softcap * tanh(scale * logits / softcap), of whole rows; softcap 0: scale * logits.
struct FinishLogits {
  float scale, softcap;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

using Operation = std::variant<RopeAngles, AddPartial, FinishPartial, Norm, OutputNorm, Products,
                               Quantize, RopeAndStore, Attend, DeltaRule, ActivatedProducts,
                               RowNorm, SumSquares, LatentStore, HeadProducts, Route,
                               ExpertProducts, ExpertOutputs, Combine, AllReduce, FinishLogits,
                               AddTwoResults, JoinLayerInputs, GateLayerInput, NextWeights>;

}  // namespace hearth
