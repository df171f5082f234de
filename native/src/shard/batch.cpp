#include "shard/batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace hearth {

Batch::Batch(const ShardConfig& config, size_t elements, std::span<const SequenceStep> sequences,
             std::span<const uint32_t> output_rows)
    : sequences_(sequences), output_rows_(output_rows) {
  for (const SequenceStep& sequence : sequences) add_rows(config, sequence);
  check_written_pages(config.page_size);
  if (rows_.empty() || elements != rows_.size() * config.row_size()) {
    throw std::invalid_argument("activations have " + std::to_string(elements) + " numbers, not " +
                                std::to_string(rows_.size()) + " rows of " +
                                std::to_string(config.row_size()));
  }
  check_output_rows(config);
}

void Batch::add_rows(const ShardConfig& config, const SequenceStep& sequence) {
  if (sequence.rows == 0 || sequence.rows > config.max_step_tokens) {
    throw std::invalid_argument("a sequence has " + std::to_string(sequence.rows) +
                                " rows, not 1 .. " + std::to_string(config.max_step_tokens));
  }
  const size_t slots = sequence.pages.size() * config.page_size;
  if (sequence.position > slots || sequence.rows > slots - sequence.position) {
    throw std::invalid_argument(
        "positions up to " + std::to_string(sequence.position + sequence.rows) + " do not fit " +
        std::to_string(sequence.pages.size()) + " pages of " + std::to_string(config.page_size));
  }
  for (size_t r = 0; r < sequence.rows; ++r) rows_.push_back({&sequence, sequence.position + r});
  if (rows_.size() > config.max_step_tokens) {
    throw std::invalid_argument("a step has more than " + std::to_string(config.max_step_tokens) +
                                " rows");
  }
}

// Threads store keys and values without a lock: no two rows may have the same slot.
void Batch::check_written_pages(size_t page_size) const {
  std::vector<uint32_t> written;
  for (const SequenceStep& sequence : sequences_) {
    const size_t end = (sequence.position + sequence.rows + page_size - 1) / page_size;
    for (size_t p = sequence.position / page_size; p < end; ++p)
      written.push_back(sequence.pages[p]);
  }
  std::sort(written.begin(), written.end());
  if (const auto twice = std::adjacent_find(written.begin(), written.end());
      twice != written.end()) {
    throw std::invalid_argument("page " + std::to_string(*twice) +
                                " would be written twice in one step");
  }
}

void Batch::check_output_rows(const ShardConfig& config) const {
  for (size_t i = 0; i < output_rows_.size(); ++i) {
    if (output_rows_[i] >= rows_.size()) {
      throw std::invalid_argument("output row " + std::to_string(output_rows_[i]) +
                                  " of a step of " + std::to_string(rows_.size()) + " rows");
    }
    // This also bounds their number by that of the rows, for which the workspace has room.
    if (i > 0 && output_rows_[i] <= output_rows_[i - 1]) {
      throw std::invalid_argument("output row " + std::to_string(output_rows_[i]) +
                                  " comes after " + std::to_string(output_rows_[i - 1]) +
                                  ": they must ascend");
    }
  }
  if (!output_rows_.empty() && config.vocab.size() == 0)
    throw std::invalid_argument("this shard has no output head, so no output rows");
}

}  // namespace hearth
