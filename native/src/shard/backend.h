// Where a shard computes: the memory of its sequences, and the steps of its program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "hearth/lane.h"
#include "hearth/shard.h"
#include "layers/program.h"
#include "shard/batch.h"
#include "shard/kv_cache.h"
#include "shard/states.h"

namespace hearth {

inline constexpr uint32_t kFinite = UINT32_MAX;

// A step that is checked, and its results.
struct StepArgs {
  const Batch& batch;
  std::span<float> x;  // [rows, row_size], in place
  float* logits;       // [output rows, vocab]
  Lane* lane;          // nullptr: this rank is alone
  // By row: the sync at which it was not finite first, or kFinite. See NotFinite.
  std::vector<uint32_t>& not_finite_at;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Where the weights that this backend computes with are packed to; nullptr: to the host's memory.
  virtual MatrixStore* store() { return nullptr; }

  // As the shard's functions of the same names.
  virtual size_t kv_pages() const = 0;
  virtual size_t kv_bytes() const = 0;
  virtual void release_pages(size_t first) = 0;
  virtual void copy_state(uint32_t from, uint32_t to, size_t position) = 0;
  virtual size_t page_bytes() const = 0;
  virtual size_t state_bytes() const = 0;
  virtual void read_page(uint32_t page, std::span<uint8_t> out) const = 0;
  virtual void write_page(uint32_t page, std::span<const uint8_t> bytes) = 0;
  virtual void read_state(uint32_t slot, size_t position, std::span<uint8_t> out) const = 0;
  virtual void write_state(uint32_t slot, size_t position, std::span<const uint8_t> bytes) = 0;

  // Gets the program ready to run, once; it and the weights that it refers to must stay. Throws
  // what a backend throws that cannot run it.
  virtual void prepare(const Program& program) = 0;
  // Nanoseconds that the step waited in syncs. Throws std::invalid_argument for sequences whose
  // state does not fit, before anything is changed; std::bad_alloc; and what the lane throws.
  virtual uint64_t run(const Program& program, const StepArgs& step) = 0;
};

// The shapes of a shard's KV cache, and of its states.
KvShape kv_shape(const ShardConfig& config);
StateShape state_shape(const ShardConfig& config);

}  // namespace hearth
