// The limits of a shard's shape.
#include <stdexcept>
#include <string>

#include "hearth/shard.h"

namespace hearth {
namespace {

// Far above any model there is, and low enough that no product of two of these overflows.
constexpr size_t kMost = size_t{1} << 24;
constexpr size_t kMostLayers = 4096;
constexpr size_t kMostHeads = 65536;
constexpr size_t kMostPageSize = 4096;

void check(bool good, const std::string& name, size_t value, size_t most) {
  if (!good) {
    throw std::invalid_argument("shard: " + name + " is " + std::to_string(value) +
                                ", not in 1 .. " + std::to_string(most));
  }
}

void check_span(const std::string& name, const Span& span, size_t most) {
  if (span.begin > span.end || span.end > most) {
    throw std::invalid_argument("shard: " + name + " [" + std::to_string(span.begin) + ", " +
                                std::to_string(span.end) + ") is not a range within " +
                                std::to_string(most));
  }
}

}  // namespace

void ShardConfig::validate() const {
  const auto positive = [](const char* name, size_t value, size_t most) {
    check(value >= 1 && value <= most, name, value, most);
  };
  positive("hidden_size", hidden_size, kMost);
  positive("head_size", head_size, kMostHeadSize);
  positive("page_size", page_size, kMostPageSize);
  positive("max_pages", max_pages, kMost);
  positive("max_step_tokens", max_step_tokens, 65536);
  positive("vocab_size", vocab_size, kMost);
  check_span("layers", layers, kMostLayers);
  check_span("heads", heads, kMostHeads);
  check_span("kv_heads", kv_heads, kMostHeads);
  check_span("ffn", ffn, kMost);
  check_span("vocab", vocab, vocab_size);
  positive("layers", layers.size(), kMostLayers);
  positive("heads", heads.size(), kMostHeads);
  positive("kv_heads", kv_heads.size(), kMostHeads);
  positive("ffn", ffn.size(), kMost);
  if (heads.size() % kv_heads.size() != 0) {
    throw std::invalid_argument("shard: " + std::to_string(heads.size()) +
                                " query heads cannot share " + std::to_string(kv_heads.size()) +
                                " KV heads evenly");
  }
  if (head_size % 2 != 0 || rope_frequencies.size() != head_size / 2) {
    throw std::invalid_argument("shard: a head of " + std::to_string(head_size) + " wants " +
                                std::to_string(head_size / 2) + " rope frequencies, not " +
                                std::to_string(rope_frequencies.size()));
  }
  if (!(norm_epsilon >= 0.0f && norm_epsilon < 1.0f))
    throw std::invalid_argument("shard: norm_epsilon is not in [0, 1)");
  kv_head_bytes(kv_type, head_size, page_size);  // throws for a type that does not fit the head
  if (head_from_embedding && (!embedding || vocab.begin != 0))
    throw std::invalid_argument("shard: the head can be the embedding's first rows only");
}

}  // namespace hearth
