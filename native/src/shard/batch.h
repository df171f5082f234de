// The rows of one step: checked, and each with its place in its sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "hearth/shard.h"

namespace hearth {

class Batch {
 public:
  struct Row {
    const SequenceStep* sequence;
    size_t position;
  };

  // elements: of the activations, [rows, hidden_size]. Sequences and output rows are referred to,
  // not copied. Throws std::invalid_argument, naming what does not fit.
  Batch(const ShardConfig& config, size_t elements, std::span<const SequenceStep> sequences,
        std::span<const uint32_t> output_rows);

  const std::vector<Row>& rows() const { return rows_; }
  std::span<const SequenceStep> sequences() const { return sequences_; }
  std::span<const uint32_t> output_rows() const { return output_rows_; }

 private:
  void add_rows(const ShardConfig& config, const SequenceStep& sequence);
  void check_written_pages(size_t page_size) const;
  void check_output_rows(const ShardConfig& config) const;

  std::span<const SequenceStep> sequences_;
  std::span<const uint32_t> output_rows_;
  std::vector<Row> rows_;
};

}  // namespace hearth
