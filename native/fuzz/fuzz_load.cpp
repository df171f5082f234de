// Any numbers as a shard's shape, any slices loaded into it. A shape is refused in words or small
// enough for its numbers; a slice is taken when name, type and size fit, and refused otherwise.
#include <algorithm>
#include <new>
#include <set>
#include <stdexcept>
#include <string>

#include "formats/matrix.h"
#include "hearth/shard.h"
#include "input.h"
#include "shards.h"

using namespace hearth;

namespace {

// What one input may make: a shape that is sound and larger is no matter of this target.
constexpr size_t kMostNumbers = 1 << 16;

// Features that Llama lacks; none of them when the input has ended.
void any_features(fuzz::Input& in, ShardConfig& config, BlockConfig& block) {
  const auto maybe = [&] { return in.upto(3) == 3; };
  auto& attention = std::get<AttentionConfig>(block.mixer);
  FeedForwardConfig& feed_forward = block.feed_forward;
  if (maybe()) config.norm.kind = NormKind::layer;
  if (maybe()) attention.value_size = in.number(64);
  if (maybe()) attention.rope = in.upto(1) ? std::nullopt : std::optional(in.number(2));
  if (maybe()) attention.scale = in.real();
  if (maybe()) attention.softcap = in.real();
  attention.bias = maybe();
  attention.output_bias = maybe();
  attention.head_norm = maybe();
  attention.sinks = maybe();
  attention.gate = maybe();
  if (maybe()) attention.row_norm = {.heads = in.number(4), .kv_heads = in.number(2)};
  if (maybe()) attention.temperature = {.slope = in.real(), .length = in.real()};
  attention.value_norm = maybe();
  attention.keys_as_values = maybe();
  if (maybe()) attention.kv_layer = in.number(2);
  if (maybe()) feed_forward.clamp = {.limit = in.real(), .factor = in.real(), .offset = in.real()};
  feed_forward.activation = static_cast<Activation>(in.upto(kActivations - 1));
  feed_forward.gated = !maybe();
  feed_forward.bias = maybe();
  feed_forward.output_bias = maybe();
  if (maybe()) {
    block.experts = {.count = in.number(9),
                     .used = in.number(4),
                     .expert = {.units = {0, in.number(40)}, .gated = !maybe(), .bias = maybe()},
                     .scores = static_cast<RouterScores>(in.upto(1)),
                     .normalize = maybe(),
                     .groups = in.number(3),
                     .used_groups = in.number(2),
                     .expert_scales = maybe()};
    if (maybe()) feed_forward.units = {};
    block.feed_forward_gate = maybe();
    block.separate_norms = maybe();
  }
  block.input_norms = !maybe();
  block.output_norms = maybe();
  if (maybe()) block.residual_scale = in.real();
  block.layer_scale = maybe();
  if (maybe())
    config.layer_inputs = {.size = in.number(24), .layers = in.number(4), .sum_scale = in.real()};
  if (maybe()) config.embedding_scale = in.real();
  if (maybe()) config.learned_positions = in.number(64);
  config.head_bias = maybe();
  if (maybe()) config.logit_scale = in.real();
  if (maybe()) config.logit_softcap = in.real();
}

GatedDeltaConfig any_gated_delta(fuzz::Input& in) {
  const size_t tile = in.number(2), begin = tile * in.upto(2);
  return {.key_heads = {begin, begin + (in.upto(3) ? tile : 1) * in.number(3)},
          .group = in.number(3),
          .tile = tile,
          .key_size = in.number(24),
          .value_size = in.number(48),
          .width = in.number(5),
          .activation = static_cast<Activation>(in.upto(kActivations - 1))};
}

ShardConfig any_config(fuzz::Input& in) {
  const auto span = [&](size_t sensible) {
    const size_t begin = in.number(2);
    return Span{begin, begin + in.number(sensible)};
  };
  ShardConfig config;
  BlockConfig block;
  auto& attention = std::get<AttentionConfig>(block.mixer);
  config.hidden_size = in.number(96);
  config.layers = span(2);
  attention.heads = span(4);
  attention.kv_heads = span(2);
  attention.key_size = attention.value_size = in.number(64);
  attention.scale = 0.1f;
  block.feed_forward.units = span(96);
  config.vocab = span(16);
  config.norm.epsilon = in.real();
  config.ropes = {
      {.frequencies = in.reals(in.upto(1) ? attention.key_size / 2 % 4096 : in.upto(40))}};
  attention.rope = 0;
  config.kv_type = static_cast<KvType>(in.upto(2));
  config.page_size = in.number(16);
  config.max_pages = in.number(64);
  config.max_step_tokens = in.number(16);
  config.embedding = in.upto(1) != 0;
  config.vocab_size = in.number(32);
  config.head_from_embedding = in.upto(1) != 0;
  any_features(in, config, block);
  config.kinds = {block, block};
  if (in.upto(3) == 3) {
    config.kinds[0].mixer = LatentAttentionConfig{.heads = attention.heads,
                                                  .query_rank = in.upto(1) * in.number(32),
                                                  .kv_rank = in.number(64),
                                                  .nope_size = in.number(32),
                                                  .rope_size = in.number(32),
                                                  .value_size = in.number(32),
                                                  .scale = 0.1f,
                                                  .rope = attention.rope};
  }
  std::get<AttentionConfig>(config.kinds[1].mixer).window = in.number(16);
  if (in.upto(3) == 3) {
    config.kinds[1].mixer = any_gated_delta(in);
    config.max_sequences = in.number(3);
    config.max_undo = in.upto(kMostUndo + 1);
  }
  for (size_t i = 0; i < std::min<size_t>(config.layers.size(), 8); ++i)
    config.kind_of_layer.push_back(in.number(1));
  return config;
}

// Elements of a layer's widest matrix of a mixer.
size_t widest(const AttentionConfig& attention, size_t hidden) {
  return attention.heads.size() * std::max(attention.key_size, attention.value_size) * hidden;
}
size_t widest(const LatentAttentionConfig& latent, size_t hidden) {
  const size_t head = std::max(latent.nope_size + latent.rope_size, latent.value_size);
  const size_t rank = std::max(latent.query_rank, latent.kv_rank + latent.rope_size);
  return latent.heads.size() * head * std::max(hidden, rank) + rank * hidden;
}
// Or of a state.
size_t widest(const GatedDeltaConfig& delta, size_t hidden) {
  const size_t values = delta.group * delta.value_size;
  return delta.key_heads.size() * std::max((delta.key_size + values) * hidden,
                                           delta.key_size * values + delta.width * values);
}

bool is_small(const ShardConfig& c) {
  const auto& experts = c.kinds[0].experts;
  for (const BlockConfig& kind : c.kinds) {
    const auto count = [&](const auto& mixer) { return widest(mixer, c.hidden_size); };
    if (std::visit(count, kind.mixer) > kMostNumbers) return false;
  }
  const size_t vocab = std::max(c.vocab_size, c.learned_positions);
  return c.layers.size() <= 4 && c.hidden_size <= 256 &&
         (!c.layer_inputs ||
          c.layer_inputs->width() * std::max(vocab, c.hidden_size) <= kMostNumbers) &&
         c.kinds[0].feed_forward.units.size() * c.hidden_size <= kMostNumbers &&
         (!experts ||
          experts->count * experts->expert.units.size() * c.hidden_size <= kMostNumbers) &&
         vocab * c.hidden_size <= kMostNumbers;
}

// Returns the slices that were begun and not finished.
std::set<std::string> load_any(Shard& shard, fuzz::Input& in) {
  std::set<std::string> begun;
  for (size_t count = in.upto(8); count > 0; --count) {
    std::vector<std::string> names = shard.missing();
    names.push_back(in.text(24));
    const std::string& name = names[in.upto(names.size() - 1)];
    const Type type = static_cast<Type>(in.upto(kTypes - 1));
    const auto found = shard.expected().find(name);
    const bool known = found != shard.expected().end();
    size_t right = 0;
    if (known) {
      const auto [rows, columns] = found->second;
      if (columns % info_of(type).block == 0) right = rows * row_bytes(type, columns);
    }
    const size_t size = in.upto(3) ? right : in.upto(right + 64);
    const std::vector<uint8_t> data = in.bytes(size);
    const size_t lacking = shard.missing().size(), held = shard.weight_bytes();
    bool taken = false;
    try {
      shard.load(name, type, data);
      taken = true;
    } catch (const std::invalid_argument& error) {
      fuzz::demand(error.what()[0] != '\0', "an error has words");
    }
    const bool whole = taken && size == right;
    if (whole) begun.erase(name);
    if (taken && !whole) begun.insert(name);
    fuzz::demand(shard.missing().size() == lacking - whole, "what is whole is missing no more");
    fuzz::demand(whole == (shard.weight_bytes() > held), "what is whole, and no more, is held");
    fuzz::demand(!taken || (known && size <= right), "no more rows than the slice has");
  }
  return begun;
}

// So that steps are reached: what is missing, a few rows at a time. Of `begun` the type may not
// fit.
void load_rest(Shard& shard, fuzz::Input& in, const std::set<std::string>& begun) {
  for (const std::string& name : shard.missing()) {
    if (begun.contains(name)) continue;
    const auto [rows, columns] = shard.expected().at(name);
    for (size_t row = 0; row < rows;) {
      const size_t count = std::min(rows - row, kGroupRows * (1 + in.upto(3)));
      const std::vector<uint8_t> data = in.bytes(count * columns * 4);
      const size_t other = in.upto(255);
      if (other != 0 && other != row) {
        try {
          shard.load(name, Type::f32, data, other);
          fuzz::demand(false, "rows come in their turn");
        } catch (const std::invalid_argument&) {
        }
      }
      shard.load(name, Type::f32, data, row);
      row += count;
    }
  }
}

// Few tokens, and only what the shard can have.
void use(Shard& shard, fuzz::Input& in) {
  const ShardConfig& config = shard.config();
  std::vector<float> x(config.hidden_size);
  const uint32_t token = in.take<uint32_t>() % 64;
  try {
    const uint32_t position = token;
    shard.embed({&token, 1}, {&position, 1}, x.data());
    fuzz::demand(token < config.vocab_size, "a token of the vocabulary");
    fuzz::demand(config.learned_positions == 0 || position < config.learned_positions,
                 "a position that the model has");
  } catch (const std::invalid_argument&) {
  } catch (const std::logic_error&) {
  }
  std::vector<float> logits(config.vocab.size());
  const std::vector<uint32_t> rows(config.vocab.size() > 0 ? 1 : 0);
  const std::vector<uint32_t> pages = {0};
  const std::vector<SequenceStep> sequences = {{1, 0, pages}};
  const bool complete = shard.missing().empty();
  try {
    shard.step(x, sequences, rows, logits.data(), nullptr);
    fuzz::demand(complete, "a step has all weights");
  } catch (const std::logic_error&) {
    fuzz::demand(!complete, "a shard with all its weights takes a step");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const bool any = in.upto(1) != 0;
  const ShardConfig config =
      any ? any_config(in) : fuzz::small_config(static_cast<KvType>(in.upto(2)));
  try {
    config.validate();
    if (!is_small(config)) return 0;
    Shard shard(config, 1);
    const std::set<std::string> begun = load_any(shard, in);
    if (in.upto(1)) load_rest(shard, in, begun);
    use(shard, in);
  } catch (const std::invalid_argument& error) {
    fuzz::demand(any, "a sound shape is taken");
    fuzz::demand(error.what()[0] != '\0', "an error has words");
  }
  return 0;
}
