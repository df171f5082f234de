// The small shards that targets load and step.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../tests/configs.h"
#include "hearth/quant.h"
#include "hearth/shard.h"

namespace hearth::fuzz {

inline ShardConfig small_config(KvType kv_type) {
  ShardConfig config = test::block_config({.hidden_size = 32,
                                           .layers = {2, 3},
                                           .heads = {0, 2},
                                           .kv_heads = {0, 1},
                                           .head_size = 32,
                                           .units = {0, 32}});
  config.kv_type = kv_type;
  config.max_pages = 12;
  config.max_step_tokens = 6;
  config.embedding = true;
  config.vocab = {0, 21};
  config.vocab_size = 21;
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
