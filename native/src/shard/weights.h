// The weights of a shard: its layers, and the slices that fill them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "hearth/shard.h"
#include "hearth/threads.h"
#include "layers/attention.h"
#include "layers/feed_forward.h"
#include "layers/gated_delta.h"
#include "layers/latent_attention.h"
#include "layers/layer_inputs.h"
#include "layers/output.h"
#include "layers/program.h"
#include "layers/slots.h"
#include "platform/memory.h"

namespace hearth {

// Not for two threads at once.
class Weights {
 public:
  explicit Weights(const ShardConfig& config);
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // As Shard::load says; the pool's threads pack.
  void load(const std::string& name, Type type, std::span<const uint8_t> data, size_t first_row,
            ThreadPool& pool);

  const Slots& slots() const { return slots_; }
  bool complete() const { return complete_slices_ == slots_.size(); }
  std::vector<std::string> missing() const;
  // Bytes of the complete slices.
  size_t size_bytes() const { return size_bytes_; }
  const Matrix& embedding() const { return embedding_; }
  const Matrix& positions() const { return positions_; }
  const Matrix& layer_embedding() const { return layer_embedding_; }
  // The norm before the head.
  const NormWeights& final_norm() const { return output_.norm; }

  // Moves the complete weights into huge pages; see Arena::gather.
  void gather(const std::atomic<bool>& stop) const { arena_.gather(stop); }

  // The forward pass over complete weights, to which it refers, as it does to the config.
  Program compile(const ShardConfig& config) const;

 private:
  struct Block {
    std::variant<Attention, LatentAttention, GatedDelta> mixer;
    FeedForward feed_forward;
  };

  static void load_vector(std::vector<float>& vector, Type type, std::span<const uint8_t> data,
                          size_t columns);
  // The rows that the data are.
  size_t load_matrix(Matrix& matrix, Type type, SliceShape shape, std::span<const uint8_t> data,
                     size_t first_row, ThreadPool& pool);
  // shape: of all matrices together.
  size_t load_matrices(std::vector<Matrix>& matrices, Type type, SliceShape shape,
                       std::span<const uint8_t> data, size_t first_row, ThreadPool& pool);

  Arena arena_;  // of all matrices
  std::vector<Block> blocks_;
  Matrix embedding_, positions_, layer_embedding_;
  LayerProjection layer_projection_;
  Output output_;
  Slots slots_;
  size_t complete_slices_ = 0, size_bytes_ = 0;
};

}  // namespace hearth
