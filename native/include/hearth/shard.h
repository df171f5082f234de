// What one node holds of a model (a range of layers and a share of each) and its forward pass.
//
// Words: a step is one forward pass of a batch; its rows are the tokens of its sequences, one after
// another. Slices, by name, with shapes [rows, columns]:
//   embedding [vocab_size, hidden]   head [vocab, hidden]   norm [1, hidden]
//   layers.N.attn_norm, .ffn_norm [1, hidden]   .wq [heads * head_size, hidden]
//   .wk, .wv [kv_heads * head_size, hidden]     .wo [hidden, heads * head_size]
//   .w1, .w3 [ffn, hidden]                      .w2 [hidden, ffn]
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hearth/kernels.h"
#include "hearth/kv.h"
#include "hearth/lane.h"
#include "hearth/matrix.h"
#include "hearth/threads.h"

namespace hearth {

struct Span {
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
};

struct ShardConfig {
  size_t hidden_size;
  Span layers, heads, kv_heads;
  size_t head_size;
  Span ffn;
  Span vocab;  // rows of the head; empty when this is not the last stage
  float norm_epsilon;
  std::vector<float> rope_frequencies;  // [head_size / 2]
  KvType kv_type;
  size_t page_size, max_pages, max_step_tokens;
  bool embedding;
  size_t vocab_size;
  bool head_from_embedding;  // the head is the embedding's rows [vocab.begin, vocab.end)

  // Throws std::invalid_argument, naming the number that is out of range.
  void validate() const;
};

struct SequenceStep {
  size_t rows;
  size_t position;              // of the first row
  std::vector<uint32_t> pages;  // that cover positions 0 .. position + rows
};

struct StepTiming {
  uint64_t wall_ns = 0, compute_ns = 0, sync_ns = 0;
};

class Shard {
 public:
  // pin: cores for the threads, or empty.
  Shard(ShardConfig config, size_t threads, std::vector<int> pin = {});
  ~Shard();
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  const ShardConfig& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  // Slices that the shard needs, with their shapes.
  const std::map<std::string, std::pair<size_t, size_t>>& expected() const { return expected_; }
  std::vector<std::string> missing() const;
  // Packs rows of one slice, from `first_row` on: whole groups of eight, one after another to the
  // slice's last. An unfinished slice may begin again at row 0. Several threads may load at once;
  // they take turns. After the last slice, a thread of the shard's own gathers the weights into
  // huge pages, while steps run already.
  void load(const std::string& name, Type type, std::span<const uint8_t> data,
            size_t first_row = 0);

  size_t weight_bytes() const;
  const KvCache& kv() const { return kv_; }
  size_t threads() const { return pool_.size(); }

  // out: [tokens.size(), hidden_size]
  void embed(std::span<const uint32_t> tokens, float* out) const;

  // x: [rows, hidden_size], the stage's input and then its output. output_rows: rows whose logits
  // are wanted, ascending; logits: [output_rows.size(), vocab.size()]. lane: nullptr when alone.
  // Throws std::invalid_argument for what does not fit, std::logic_error when slices are missing or
  // another step is under way, and whatever the lane throws.
  StepTiming step(std::span<float> x, const std::vector<SequenceStep>& sequences,
                  std::span<const uint32_t> output_rows, float* logits, Lane* lane);

 private:
  struct Layer {
    std::vector<float> attn_norm, ffn_norm;
    Matrix wq, wk, wv, wo, w1, w2, w3;
  };
  // Where one row of the batch stands.
  struct Row {
    const SequenceStep* sequence;
    size_t position;
  };
  // Activations as the matrix products want them: as they are, and quantized.
  struct Input {
    const float* x;
    size_t columns;
    int8_t* q;
    float* scales;
    int32_t* sums;
  };
  struct Product {
    const Matrix* matrix;
    size_t first_row;  // of the matrix; a multiple of eight
    size_t rows;
    float* y;
    size_t y_stride;
  };
  class Pass;

  // Whether that was the last of the slice.
  bool load_rows(const std::string& name, Type type, std::span<const uint8_t> data,
                 size_t first_row);
  Matrix* matrix_slot(const std::string& name);
  std::vector<float>* vector_slot(const std::string& name);

  ShardConfig config_;
  const Kernels& kernels_;
  ThreadPool pool_;
  Dealer dealer_;
  KvCache kv_;
  std::map<std::string, std::pair<size_t, size_t>> expected_;
  mutable std::mutex loading_;  // over packed_, complete_ and weight_bytes_
  std::mutex stepping_;
  std::map<std::string, size_t> packed_;  // rows of each slice that are there
  std::vector<Layer> layers_;
  std::vector<float> norm_;
  Matrix embedding_, head_;
  Arena arena_;                             // of all matrices
  size_t weight_bytes_ = 0, complete_ = 0;  // of complete slices, and their number
  std::vector<float> workspace_;            // grown to the largest step seen
  std::vector<int8_t> quantized_;
  std::vector<int32_t> sums_;
  std::atomic<bool> closing_{false};
  std::thread gathering_;
};

}  // namespace hearth
