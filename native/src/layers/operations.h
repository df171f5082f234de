// The operations of a forward pass: coarse ones, about nine a block, as plain data. All threads of
// the pool run each operation, and each thread does its part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "formats/matrix.h"
#include "layers/buffers.h"

namespace hearth {

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

// cos, sin = the rotary angles of each row's position.
struct RopeAngles {
  std::span<const float> frequencies;  // [head_size / 2]

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// residual += partial
struct AddPartial {
  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// normed = RMS norm of the residual, quantized where the products that follow need it.
struct Norm {
  const std::vector<float>* weight;
  float epsilon;
  bool add;  // residual += partial first
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// The same of the output rows only: row i of normed is output row i's.
struct OutputNorm {
  const std::vector<float>* weight;
  float epsilon;
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
  };
  BufferId input;
  std::vector<Product> products;
  bool output_rows_only = false;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// Quantizes whole rows of a buffer.
struct Quantize {
  BufferId buffer;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

struct AttentionShape {
  size_t heads, kv_heads, head_size;

  size_t queries_per_kv_head() const { return heads / kv_heads; }
};

// Queries are rotated and scaled in place; keys are rotated; keys and values go to the KV cache.
struct RopeAndStore {
  AttentionShape shape;
  size_t layer;  // of the shard

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// mixed = softmax(queries keys^T) values, over the pages of each row's sequence.
struct Attend {
  AttentionShape shape;
  size_t layer;   // of the shard
  bool quantize;  // mixed too; only where a head is a whole number of blocks

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// gate = silu(gate weights x normed) * (up weights x normed), quantized where the next product
// needs it. Divided as Products are.
struct GatedProducts {
  const Matrix* gate;
  const Matrix* up;
  bool quantize;

  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

// partial = its sum over all ranks. Barriers before and after are its own; without a lane, which is
// known only in a step, it is one barrier.
struct AllReduce {
  Access access() const;
  void run(Pass& pass, size_t thread) const;
};

using Operation = std::variant<RopeAngles, AddPartial, Norm, OutputNorm, Products, Quantize,
                               RopeAndStore, Attend, GatedProducts, AllReduce>;

}  // namespace hearth
