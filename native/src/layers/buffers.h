// The named buffers of a forward pass, and sets of them. Operations name the buffers that they read
// and write; from this follow the barriers between them (program.h) and which buffers may share
// memory (shard/workspace.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "hearth/kernels.h"
#include "hearth/types.h"

namespace hearth {

enum class BufferId : uint8_t {
  // Not in the workspace.
  residual,      // [rows, hidden]: the step's input and, at last, its output
  logits,        // [output rows, vocab]
  kv_cache,      // all pages
  states,        // of recurrent mixers, all slots
  layer_inputs,  // see LayerInputsConfig: [rows, row_size], behind the residual's columns
  // In the workspace: [rows, columns], but for the scratch memory of each thread.
  cos,              // of the rotary angles
  sin,              //
  normed,           // input of the mixer, of the feed-forward, and of the head
  queries,          // what attends
  keys,             //
  values,           //
  row_squares,      // see RowNormConfig: sums of squares of queries and of keys, [rows, 2]
  query_latent,     // see LatentAttentionConfig, [rows, query_rank]
  full_queries,     // [rows, heads * (nope_size + rope_size)]
  head_queries,     // parts that are not rotated, [heads, rows, nope_size]
  head_mixed,       // values of each head, [rows, heads * value_size]
  mixer_gate,       // see AttentionConfig::gate; and of the gated delta rule
  mixer_decay,      // of the gated delta rule, [rows, value heads]
  mixer_beta,       //
  mixed,            // what the mixer makes
  partial,          // this rank's part of what is added to the residual
  two_results,      // see BlockConfig::separate_norms: of the feed-forward, then of the experts,
                    // [rows, 2 * hidden]
  gate,             //
  up,               //
  router,           // the router's products, [rows, experts]
  choices,          // of each row: its experts, then their weights, and scratch memory
  expert_input,     // rows of `normed` in the order of their experts, [rows * used, hidden]
  expert_gate,      // [rows * used, units]
  expert_up,        //
  expert_output,    // [rows * used, hidden]
  ffn_gate,         // see BlockConfig::feed_forward_gate, [rows, 1]
  layer_gate,       // see LayerInputsConfig, [rows, size]
  layer_projected,  // [rows, width]
  scratch,          // each thread's, for attention and products
};

inline constexpr size_t kBuffers = static_cast<size_t>(BufferId::scratch) + 1;

static_assert(kBuffers <= 64);

class BufferSet {
 public:
  constexpr BufferSet() = default;
  constexpr BufferSet(std::initializer_list<BufferId> ids) {
    for (BufferId id : ids) bits_ |= bit(id);
  }
  constexpr bool contains(BufferId id) const { return (bits_ & bit(id)) != 0; }
  constexpr bool intersects(BufferSet other) const { return (bits_ & other.bits_) != 0; }
  constexpr BufferSet operator|(BufferSet other) const { return BufferSet(bits_ | other.bits_); }
  constexpr BufferSet without(BufferSet other) const { return BufferSet(bits_ & ~other.bits_); }

 private:
  static constexpr uint64_t bit(BufferId id) { return uint64_t{1} << static_cast<unsigned>(id); }
  constexpr explicit BufferSet(uint64_t bits) : bits_(bits) {}
  uint64_t bits_ = 0;
};

template <typename Value>
class PerBuffer {
 public:
  Value& operator[](BufferId id) { return values_[static_cast<size_t>(id)]; }
  const Value& operator[](BufferId id) const { return values_[static_cast<size_t>(id)]; }

 private:
  std::array<Value, kBuffers> values_{};
};

// One buffer in a step. Inputs of products with quantized weights have a quantized copy, in blocks
// of 32 columns.
struct Activations {
  float* x = nullptr;        // [rows, columns]
  size_t columns = 0;        //
  int8_t* q = nullptr;       // [rows, columns]
  float* scales = nullptr;   // [rows, columns / 32]
  HalfSums* sums = nullptr;  // [rows, columns / 32]: see Kernels::quantize

  float* row(size_t r) const { return x + r * columns; }
  // The same memory for rows of another width: a buffer has room for the widest kind of block.
  Activations of_width(size_t width) const {
    Activations same = *this;
    same.columns = width;
    return same;
  }
  // Rows from `first` on, of another width.
  Activations from_row(size_t first, size_t width) const {
    Activations part = of_width(width);
    part.x += first * width;
    if (part.q == nullptr) return part;
    part.q += first * width;
    part.scales += first * (width / kBlock);
    part.sums += first * (width / kBlock);
    return part;
  }
};

}  // namespace hearth
