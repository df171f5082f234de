// The weights of a shard: its layers, and the slices that fill them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
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
#include "shard/layer_stream.h"

namespace hearth {

// Not for two threads at once.
class Weights {
 public:
  // disk: see Shard. store: of the backend, if it has memory of its own; then none is on disk.
  explicit Weights(const ShardConfig& config, const DiskWeights& disk = {},
                   MatrixStore* store = nullptr);
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

  // Those on disk are there to be read; call it once they are complete. Throws DeviceError.
  void start() {
    if (stream_) stream_->start();
  }
  // See Shard.
  size_t disk_bytes() const {
    return stream_ ? stream_->file_bytes() -
                         std::min<uint64_t>(stream_->file_bytes(), stream_->memory_bytes())
                   : 0;
  }

  // The forward pass over complete weights, to which it refers, as it does to the config.
  Program compile(const ShardConfig& config) const;

 private:
  struct Block {
    std::variant<Attention, LatentAttention, GatedDelta> mixer;
    FeedForward feed_forward;
  };

  static void load_vector(std::vector<float>& vector, Type type, std::span<const uint8_t> data,
                          size_t columns);
  // Where a matrix goes: to the stream of its layer, to a store, or, without either, to the arena.
  struct Place {
    std::optional<size_t> layer;  // whose weights are on disk
    MatrixStore* store;
  };

  // The rows that the data are.
  size_t load_matrix(const Place& place, Matrix& matrix, Type type, SliceShape shape,
                     std::span<const uint8_t> data, size_t first_row, ThreadPool& pool);
  // shape: of all matrices together.
  size_t load_matrices(const Place& place, std::vector<Matrix>& matrices, Type type,
                       SliceShape shape, std::span<const uint8_t> data, size_t first_row,
                       ThreadPool& pool);

  // The layer of this shard that a slice belongs to, if that is on disk.
  std::optional<size_t> streamed_layer(const std::string& name) const;

  size_t first_layer_;
  MatrixStore* store_;                   // of the backend, or nullptr
  Arena arena_;                          // of all matrices in the host's memory
  std::unique_ptr<LayerStream> stream_;  // of those on disk
  std::vector<Block> blocks_;
  Matrix embedding_, positions_, layer_embedding_;
  LayerProjection layer_projection_;
  Output output_;
  Slots slots_;
  size_t complete_slices_ = 0, size_bytes_ = 0;
};

}  // namespace hearth
