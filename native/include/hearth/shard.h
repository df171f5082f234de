// One node's part of a model, a range of layers and a share of each, and its forward pass.
//
// Words: a step is one forward pass of a batch; its rows are the tokens of its sequences, one after
// another. Slices, by name, with shapes [rows, columns]; vectors have one row:
//   embedding [vocab_size, hidden]   positions [learned_positions, hidden]
//   norm [1, hidden]   head [vocab, hidden]   head_bias [1, vocab]
//   layer_embedding [vocab_size, layers of the model * size], and those of layers/layer_inputs.h
//   and those of each layer, "layers.N.": see layers/attention.h, gated_delta.h and feed_forward.h
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "hearth/config.h"
#include "hearth/lane.h"
#include "hearth/types.h"

namespace hearth {

struct SequenceStep {
  size_t rows;
  size_t position;                  // of the first row
  std::span<const uint32_t> pages;  // that cover positions 0 .. position + rows
  uint32_t slot = 0;                // of the state of recurrent mixers
  // The next step of the sequence may begin so many positions before this one's end, or anywhere
  // behind that: rejected drafts are taken back. Read only where a mixer is recurrent.
  size_t undo = 0;
};

struct StepTiming {
  uint64_t wall_ns = 0, compute_ns = 0, sync_ns = 0;
};

// A row whose values stopped being finite, and where this rank saw that first: the number (from 0)
// of the sync to which its own part was not finite. The number of syncs stands for the output of
// the last block, one more for the logits. Of a row's ranks the one with the lowest number is the
// source: all others get its values by that sync.
struct NotFinite {
  uint32_t row, sync;
};

// Layers, of the model, whose weights lie in a file in `folder` instead of in memory: each step
// reads them from there, ahead of their use.
struct DiskWeights {
  std::vector<size_t> layers;
  std::string folder;
};

using SliceShape = std::pair<size_t, size_t>;  // rows, columns

class Shard {
 public:
  // pin: cores for the threads, or empty. device: "cpu" or a GPU, see devices.h; disk: on a CPU.
  // Throws std::invalid_argument, DeviceError.
  Shard(ShardConfig config, size_t threads, std::vector<int> pin = {},
        const std::string& device = "cpu", const DiskWeights& disk = {});
  ~Shard();
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  const ShardConfig& config() const;
  // Slices that the shard needs.
  const std::map<std::string, SliceShape>& expected() const;
  // Those of them that are not complete.
  std::vector<std::string> missing() const;
  // Packs rows of one slice, from `first_row` on: whole groups of eight, one after another to the
  // slice's last. An unfinished slice may begin again at row 0. Several threads may load at once;
  // they take turns. After the last slice, a thread of the shard's own gathers the weights into
  // huge pages, while steps run already.
  void load(const std::string& name, Type type, std::span<const uint8_t> data,
            size_t first_row = 0);

  // Of the slices that are complete.
  size_t weight_bytes() const;
  // Of those, the bytes that take no memory.
  size_t disk_bytes() const;
  // KV pages that have memory; its bytes, with those of sequences' states.
  size_t kv_pages() const;
  size_t kv_bytes() const;
  // Gives the memory of KV page `first` and those after it back; they must hold nothing of use.
  // From page 0 on no sequence is left, and the memory of their states goes back too.
  void release_pages(size_t first);

  // Copies the state of recurrent mixers from a slot to another; `position` is of the next row.
  // Throws std::invalid_argument if `from` does not hold the state after that many positions. The
  // copy can go back as far as `from` can.
  void copy_state(uint32_t from, uint32_t to, size_t position);

  // The content of a KV page, and of a slot's state after `position` positions: to keep elsewhere,
  // and to bring back. The bytes have a meaning only for the same config on a CPU with the same
  // kernels. Throw std::invalid_argument for what has no such content, or another size.
  size_t page_bytes() const;
  size_t state_bytes() const;
  void read_page(uint32_t page, std::span<uint8_t> out) const;
  void write_page(uint32_t page, std::span<const uint8_t> bytes);
  void read_state(uint32_t slot, size_t position, std::span<uint8_t> out) const;
  void write_state(uint32_t slot, size_t position, std::span<const uint8_t> bytes);

  // The first stage's input: scaled rows of the embedding, plus those of learned positions.
  // positions: one for each token; read only by models that have learned positions, and may be
  // empty for others. out: [tokens.size(), row_size], see ShardConfig::row_size
  void embed(std::span<const uint32_t> tokens, std::span<const uint32_t> positions,
             float* out) const;

  // Applies the norm before the head, in place, to rows of the last stage's output. rows: [n,
  // hidden_size]. Throws std::logic_error where this shard has no head or no weights yet.
  void final_norm(std::span<float> rows) const;

  // x: [rows, row_size], the stage's input and then its output. output_rows: rows whose logits
  // are wanted, ascending; logits: [output_rows.size(), vocab.size()]. lane: nullptr when alone.
  // Throws std::invalid_argument for what does not fit, std::logic_error when slices are missing or
  // another step is under way, and whatever the lane throws. not_finite: gets the rows whose values
  // stopped being finite, ascending; their sequences have no use for the rest.
  StepTiming step(std::span<float> x, std::span<const SequenceStep> sequences,
                  std::span<const uint32_t> output_rows, float* logits, Lane* lane,
                  std::vector<NotFinite>* not_finite = nullptr);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hearth
