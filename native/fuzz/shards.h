// The small shards that targets load and step.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "hearth/quant.h"
#include "hearth/shard.h"

namespace hearth::fuzz {

inline ShardConfig small_config(KvType kv_type) {
  ShardConfig config = {.hidden_size = 32,
                        .layers = {2, 3},
                        .heads = {0, 2},
                        .kv_heads = {0, 1},
                        .head_size = 32,
                        .ffn = {0, 32},
                        .vocab = {0, 21},
                        .norm_epsilon = 1e-5f,
                        .rope_frequencies = {},
                        .kv_type = kv_type,
                        .page_size = 4,
                        .max_pages = 12,
                        .max_step_tokens = 6,
                        .embedding = true,
                        .vocab_size = 21,
                        .head_from_embedding = false};
  for (size_t i = 0; i < config.head_size / 2; ++i)
    config.rope_frequencies.push_back(std::pow(10000.0f, -static_cast<float>(i) / 16.0f));
  return config;
}

// Random weights, the same each time.
inline std::unique_ptr<Shard> small_shard(const ShardConfig& config, Type type, size_t threads) {
  auto shard = std::make_unique<Shard>(config, threads);
  uint64_t seed = 1;
  for (const auto& [name, shape] : shard->expected()) {
    const auto [rows, columns] = shape;
    const Type used = name.ends_with("norm") ? Type::f32 : type;
    std::vector<uint8_t> data(rows * row_bytes(used, columns));
    random_rows(used, {++seed, 0, rows, 0, columns, 0.15f}, data.data());
    shard->load(name, used, data);
  }
  return shard;
}

}  // namespace hearth::fuzz
