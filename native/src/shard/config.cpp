// The limits of a shard's shape.
#include "hearth/config.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace hearth {
namespace {

// Far above any model there is, and low enough that no product of two of these overflows.
constexpr size_t kMost = size_t{1} << 24;
constexpr size_t kMostLayers = 4096;
constexpr size_t kMostHeads = 65536;
constexpr size_t kMostPageSize = 4096;
constexpr size_t kMostWidth = 256;
constexpr size_t kMostSequences = 65536;
constexpr size_t kMostExperts = 4096;

[[noreturn]] void refuse(const std::string& problem) {
  throw std::invalid_argument("shard: " + problem);
}

void check_size(const std::string& name, size_t value, size_t most) {
  if (value < 1 || value > most) {
    refuse(name + " is " + std::to_string(value) + ", not in 1 .. " + std::to_string(most));
  }
}

void check_span(const std::string& name, const Span& span, size_t most) {
  if (span.begin > span.end || span.end > most) {
    refuse(name + " [" + std::to_string(span.begin) + ", " + std::to_string(span.end) +
           ") is not a range within " + std::to_string(most));
  }
}

void check_part(const std::string& name, const Span& span, size_t most) {
  check_span(name, span, most);
  check_size(name, span.size(), most);
}

void check_finite(const std::string& name, float value, bool zero) {
  if (!std::isfinite(value) || value < 0.0f || (!zero && value == 0.0f)) {
    refuse(name + " is " + std::to_string(value) + ", not a finite number " +
           (zero ? "of at least 0" : "above 0"));
  }
}

void check_epsilon(const std::string& name, float epsilon) {
  if (!(epsilon >= 0.0f && epsilon < 1.0f)) refuse(name + " is not in [0, 1)");
}

void check_rope(const ShardConfig& config, size_t rope, size_t head_size) {
  if (rope >= config.ropes.size())
    refuse("rope " + std::to_string(rope) + " of " + std::to_string(config.ropes.size()));
  const size_t pairs = config.ropes[rope].frequencies.size();
  if (2 * pairs > head_size) {
    refuse("a head of " + std::to_string(head_size) + " wants at most " +
           std::to_string(head_size / 2) + " rope frequencies, not " + std::to_string(pairs));
  }
}

void check_row_norm(const AttentionConfig& attention, const RowNormConfig& norm) {
  if (attention.head_norm) refuse("a norm of each head and one of whole rows");
  check_size("heads of a row norm", norm.heads, kMostHeads);
  check_size("KV heads of a row norm", norm.kv_heads, kMostHeads);
  check_span("heads", attention.heads, norm.heads);
  check_span("kv_heads", attention.kv_heads, norm.kv_heads);
  if (norm.heads % norm.kv_heads != 0) {
    refuse(std::to_string(norm.heads) + " query heads cannot share " +
           std::to_string(norm.kv_heads) + " KV heads evenly");
  }
}

void check_mixer(const ShardConfig& config, const AttentionConfig& attention) {
  check_part("heads", attention.heads, kMostHeads);
  check_part("kv_heads", attention.kv_heads, kMostHeads);
  check_size("key_size", attention.key_size, kMostHeadSize);
  check_size("value_size", attention.value_size, kMostHeadSize);
  if (attention.heads.size() % attention.kv_heads.size() != 0) {
    refuse(std::to_string(attention.heads.size()) + " query heads cannot share " +
           std::to_string(attention.kv_heads.size()) + " KV heads evenly");
  }
  check_finite("the scale of attention", attention.scale, false);
  check_finite("the soft cap of attention", attention.softcap, true);
  if (attention.rope) check_rope(config, *attention.rope, attention.key_size);
  if (attention.row_norm) check_row_norm(attention, *attention.row_norm);
  if (attention.temperature) {
    check_finite("the slope of attention's temperature", attention.temperature->slope, true);
    check_finite("the length of attention's temperature", attention.temperature->length, false);
  }
  if (attention.keys_as_values && attention.key_size != attention.value_size) {
    refuse("keys of " + std::to_string(attention.key_size) + " elements cannot be values of " +
           std::to_string(attention.value_size));
  }
  // Throw for a type that does not fit the head.
  kv_head_bytes(config.kv_type, attention.key_size, attention.value_size, config.page_size);
}

void check_mixer(const ShardConfig& config, const LatentAttentionConfig& attention) {
  check_part("heads", attention.heads, kMostHeads);
  if (attention.query_rank > 0) check_size("query_rank", attention.query_rank, kMost);
  check_size("kv_rank", attention.kv_rank, kMostHeadSize);
  check_size("nope_size", attention.nope_size, kMostHeadSize);
  check_size("rope_size", attention.rope_size, kMostHeadSize);
  check_size("kv_rank with rope_size", attention.kv_rank + attention.rope_size, kMostHeadSize);
  check_size("value_size", attention.value_size, kMostHeadSize);
  check_finite("the scale of attention", attention.scale, false);
  if (attention.rope) check_rope(config, *attention.rope, attention.rope_size);
  check_epsilon("the epsilon of latent attention", attention.norm_epsilon);
  kv_head_bytes(config.kv_type, attention.kv_rank + attention.rope_size, 0, config.page_size);
}

void check_mixer(const ShardConfig& config, const GatedDeltaConfig& mixer) {
  check_part("key_heads", mixer.key_heads, kMostHeads);
  check_size("value heads of a key head", mixer.group, kMostHeads / mixer.key_heads.size());
  check_size("key heads of a tile", mixer.tile, kMostHeads);
  check_size("key_size", mixer.key_size, kMostHeadSize);
  check_size("value_size", mixer.value_size, kMostHeadSize);
  check_size("positions of a convolution", mixer.width, kMostWidth);
  check_size("max_sequences", config.max_sequences, kMostSequences);
  if (config.max_undo > 0) check_size("max_undo", config.max_undo, kMostUndo);
  if (mixer.key_heads.begin % mixer.tile != 0 || mixer.key_heads.end % mixer.tile != 0) {
    refuse("key_heads [" + std::to_string(mixer.key_heads.begin) + ", " +
           std::to_string(mixer.key_heads.end) + ") are not whole tiles of " +
           std::to_string(mixer.tile));
  }
}

void check_feed_forward(const FeedForwardConfig& feed_forward) {
  if (!feed_forward.clamp) return;
  if (!feed_forward.gated) refuse("a clamp of a feed-forward that is not gated");
  check_finite("the limit of a feed-forward", feed_forward.clamp->limit, false);
  check_finite("the factor of a feed-forward's gate", feed_forward.clamp->factor, false);
  check_finite("the offset of a feed-forward", feed_forward.clamp->offset, true);
}

void check_experts(const ExpertsConfig& config) {
  check_size("experts", config.count, kMostExperts);
  check_size("experts used", config.used, config.count);
  check_part("units of an expert", config.expert.units, kMost);
  check_feed_forward(config.expert);
  check_finite("the scale of experts", config.scale, false);
  check_size("groups of experts", config.groups, config.count);
  check_size("groups of experts used", config.used_groups, config.groups);
  if (config.count % config.groups != 0 ||
      config.used > config.count / config.groups * config.used_groups) {
    refuse(std::to_string(config.used) + " of " + std::to_string(config.count) + " experts in " +
           std::to_string(config.used_groups) + " of " + std::to_string(config.groups) + " groups");
  }
}

void check_block(const ShardConfig& config, const BlockConfig& block) {
  std::visit([&](const auto& mixer) { check_mixer(config, mixer); }, block.mixer);
  if (block.experts)
    check_experts(*block.experts);
  else
    check_size("feed-forward units", block.feed_forward.units.size(), kMost);
  check_span("feed-forward units", block.feed_forward.units, kMost);
  check_feed_forward(block.feed_forward);
  if (block.feed_forward_gate && !(block.experts && block.feed_forward.units.size() > 0))
    refuse("a gate of the feed-forward without experts beside it");
  check_finite("the residual scale", block.residual_scale, false);
  if (!block.separate_norms) return;
  if (!block.experts || block.feed_forward.units.size() == 0 || block.feed_forward_gate)
    refuse("separate norms without a feed-forward and experts, or with a gate of the first");
}

// A layer that reads the keys and values of another: an earlier one of this shard, alike.
void check_kv_layer(const ShardConfig& config, size_t layer) {
  const auto* attention = std::get_if<AttentionConfig>(&config.kind_of(layer).mixer);
  if (attention == nullptr || !attention->kv_layer) return;
  const size_t own = config.layers.begin + layer, source = *attention->kv_layer;
  const std::string what =
      "layer " + std::to_string(own) + " reads the keys of layer " + std::to_string(source);
  if (source < config.layers.begin || source >= own)
    refuse(what + ", which is not an earlier one of this shard");
  const auto* other =
      std::get_if<AttentionConfig>(&config.kind_of(source - config.layers.begin).mixer);
  if (other == nullptr || other->kv_layer) refuse(what + ", which has none");
  if (attention->row_norm) refuse(what + ", with a norm of whole rows");
  if (other->kv_heads.begin != attention->kv_heads.begin ||
      other->kv_heads.end != attention->kv_heads.end || other->key_size != attention->key_size ||
      other->value_size != attention->value_size)
    refuse(what + ", which has other KV heads");
}

void check_layer_inputs(const ShardConfig& config, const LayerInputsConfig& inputs) {
  check_size("elements of a layer's input", inputs.size, kMost);
  check_size("layers of the model", inputs.layers, kMostLayers);
  check_size("elements of all layers' inputs", inputs.width(), kMost);
  if (config.layers.end > inputs.layers)
    refuse("inputs for " + std::to_string(inputs.layers) + " layers, this shard ends at " +
           std::to_string(config.layers.end));
  check_finite("the scale of the layers' embedding", inputs.embedding_scale, false);
  check_finite("the scale of the layers' projection", inputs.projection_scale, false);
  check_finite("the scale of the layers' inputs", inputs.sum_scale, false);
}

}  // namespace

void ShardConfig::validate() const {
  check_size("hidden_size", hidden_size, kMost);
  check_size("page_size", page_size, kMostPageSize);
  check_size("max_pages", max_pages, kMost);
  check_size("max_step_tokens", max_step_tokens, 65536);
  check_size("vocab_size", vocab_size, kMost);
  check_part("layers", layers, kMostLayers);
  check_span("vocab", vocab, vocab_size);
  check_size("kinds of blocks", kinds.size(), kMostLayers);
  if (kind_of_layer.size() != layers.size()) {
    refuse("kinds for " + std::to_string(kind_of_layer.size()) + " of " +
           std::to_string(layers.size()) + " layers");
  }
  for (size_t kind : kind_of_layer) {
    if (kind >= kinds.size())
      refuse("a layer of kind " + std::to_string(kind) + " of " + std::to_string(kinds.size()));
  }
  check_epsilon("norm_epsilon", norm.epsilon);
  if (ropes.size() > kMostLayers) refuse(std::to_string(ropes.size()) + " rotary embeddings");
  for (const RopeConfig& rope : ropes) {
    check_size("rope frequencies", rope.frequencies.size(), kMostHeadSize / 2);
    check_finite("the magnitude of a rotary embedding", rope.magnitude, false);
    for (float each : rope.frequencies) {
      if (!std::isfinite(each)) refuse("a rope frequency is not finite");
    }
  }
  for (const BlockConfig& block : kinds) check_block(*this, block);
  for (size_t layer = 0; layer < layers.size(); ++layer) check_kv_layer(*this, layer);
  if (layer_inputs) check_layer_inputs(*this, *layer_inputs);
  check_finite("embedding_scale", embedding_scale, false);
  check_finite("logit_scale", logit_scale, false);
  check_finite("logit_softcap", logit_softcap, true);
  if (learned_positions > kMost)
    refuse("learned_positions is " + std::to_string(learned_positions));
  if (head_from_embedding && (!embedding || vocab.begin != 0))
    refuse("the head can be the embedding's first rows only");
}

}  // namespace hearth
