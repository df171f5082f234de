// Shapes of shards for tests and fuzz targets: one kind of block, as Llama has it.
#pragma once

#include <cmath>
#include <cstddef>

#include "hearth/config.h"

namespace hearth::test {

struct BlockShape {
  size_t hidden_size;
  Span layers, heads, kv_heads;
  size_t head_size;
  Span units;
};

inline AttentionConfig& attention_of(BlockConfig& block) {
  return std::get<AttentionConfig>(block.mixer);
}
inline const AttentionConfig& attention_of(const BlockConfig& block) {
  return std::get<AttentionConfig>(block.mixer);
}

// Without embedding and head, and with rotary positions of base 10,000.
inline ShardConfig block_config(const BlockShape& shape) {
  ShardConfig config;
  config.hidden_size = shape.hidden_size;
  config.layers = shape.layers;
  config.kinds = {
      {.mixer = AttentionConfig{.heads = shape.heads,
                                .kv_heads = shape.kv_heads,
                                .key_size = shape.head_size,
                                .value_size = shape.head_size,
                                .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size)),
                                .rope = 0},
       .feed_forward = {.units = shape.units}}};
  config.kind_of_layer.assign(shape.layers.size(), 0);
  config.ropes.resize(1);
  const size_t pairs = shape.head_size / 2;
  for (size_t i = 0; i < pairs; ++i) {
    const float exponent = -static_cast<float>(i) / static_cast<float>(pairs);
    config.ropes[0].frequencies.push_back(std::pow(10000.0f, exponent));
  }
  config.page_size = 4;
  config.max_pages = 16;
  config.max_step_tokens = 12;
  config.vocab_size = 1;
  return config;
}

}  // namespace hearth::test
