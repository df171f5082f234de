#include "hearth/shard.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "hearth/cpu.h"

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
                                std::to_string(span.end) + ") is no range within " +
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

Shard::Shard(ShardConfig config, size_t threads, std::vector<int> pin)
    : config_((config.validate(), std::move(config))),
      kernels_(kernels_in_use()),
      pool_(threads, std::move(pin)),
      dealer_(threads),
      kv_({config_.layers.size(), config_.kv_heads.size(), config_.head_size, config_.page_size,
           config_.max_pages, config_.kv_type}),
      layers_(config_.layers.size()) {
  const size_t hidden = config_.hidden_size;
  const size_t q = config_.heads.size() * config_.head_size;
  const size_t kv = config_.kv_heads.size() * config_.head_size;
  const size_t ffn = config_.ffn.size();
  for (size_t n = config_.layers.begin; n < config_.layers.end; ++n) {
    const std::string layer = "layers." + std::to_string(n) + ".";
    expected_[layer + "attn_norm"] = {1, hidden};
    expected_[layer + "wq"] = {q, hidden};
    expected_[layer + "wk"] = {kv, hidden};
    expected_[layer + "wv"] = {kv, hidden};
    expected_[layer + "wo"] = {hidden, q};
    expected_[layer + "ffn_norm"] = {1, hidden};
    expected_[layer + "w1"] = {ffn, hidden};
    expected_[layer + "w3"] = {ffn, hidden};
    expected_[layer + "w2"] = {hidden, ffn};
  }
  if (config_.embedding) expected_["embedding"] = {config_.vocab_size, hidden};
  if (config_.vocab.size() > 0) {
    expected_["norm"] = {1, hidden};
    if (!config_.head_from_embedding) expected_["head"] = {config_.vocab.size(), hidden};
  }
}

Shard::~Shard() {
  closing_ = true;
  if (gathering_.joinable()) gathering_.join();
}

std::vector<std::string> Shard::missing() const {
  const std::lock_guard lock(loading_);
  std::vector<std::string> names;
  for (const auto& [name, shape] : expected_) {
    const auto found = packed_.find(name);
    if (found == packed_.end() || found->second != shape.first) names.push_back(name);
  }
  return names;
}

std::vector<float>* Shard::vector_slot(const std::string& name) {
  if (name == "norm") return &norm_;
  const size_t dot = name.rfind('.');
  if (dot == std::string::npos) return nullptr;
  Layer& layer = layers_[std::stoul(name.substr(7)) - config_.layers.begin];
  if (name.substr(dot) == ".attn_norm") return &layer.attn_norm;
  if (name.substr(dot) == ".ffn_norm") return &layer.ffn_norm;
  return nullptr;
}

Matrix* Shard::matrix_slot(const std::string& name) {
  if (name == "embedding") return &embedding_;
  if (name == "head") return &head_;
  Layer& layer = layers_[std::stoul(name.substr(7)) - config_.layers.begin];
  const std::map<std::string, Matrix*> slots = {
      {"wq", &layer.wq}, {"wk", &layer.wk}, {"wv", &layer.wv}, {"wo", &layer.wo},
      {"w1", &layer.w1}, {"w2", &layer.w2}, {"w3", &layer.w3}};
  return slots.at(name.substr(name.rfind('.') + 1));
}

size_t Shard::weight_bytes() const {
  const std::lock_guard lock(loading_);
  return weight_bytes_;
}

void Shard::load(const std::string& name, Type type, std::span<const uint8_t> data,
                 size_t first_row) {
  const std::lock_guard lock(loading_);
  if (!expected_.contains(name))
    throw std::invalid_argument("this shard has no slice '" + name.substr(0, 64) + "'");
  try {
    if (!load_rows(name, type, data, first_row)) return;
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument("slice '" + name + "': " + error.what());
  }
  if (++complete_ == expected_.size()) {
    try {
      gathering_ = std::thread([this] { arena_.gather(closing_); });
    } catch (const std::system_error&) {  // no more threads to be had: it works as well without
    }
  }
}

bool Shard::load_rows(const std::string& name, Type type, std::span<const uint8_t> data,
                      size_t first_row) {
  const auto [rows, columns] = expected_.at(name);
  size_t& packed = packed_[name];
  if (packed == rows) throw std::invalid_argument("it came twice");
  if (first_row != packed && first_row != 0) {
    throw std::invalid_argument("row " + std::to_string(first_row) + " came where row " +
                                std::to_string(packed) + " was next");
  }
  if (std::vector<float>* vector = vector_slot(name)) {
    if (type != Type::f32) throw std::invalid_argument("a norm is f32");
    if (data.size() != columns * 4) {
      throw std::invalid_argument("it has " + std::to_string(data.size()) + " bytes, not " +
                                  std::to_string(columns * 4));
    }
    vector->resize(columns);
    std::memcpy(vector->data(), data.data(), data.size());
    weight_bytes_ += data.size();
    packed = rows;
    return true;
  }
  Matrix* matrix = matrix_slot(name);
  if (matrix->empty()) {
    // Checked before it takes memory, which an arena does not take back.
    Matrix::check_rows(type, rows, columns, first_row, data.size());
    *matrix = Matrix(type, rows, columns, &arena_);
  } else if (matrix->type() != type) {
    throw std::invalid_argument("it began as " + std::string(type_name(matrix->type())) +
                                " and cannot go on as " + std::string(type_name(type)));
  }
  packed = first_row + matrix->pack(first_row, data, &pool_);
  if (packed != rows) return false;
  weight_bytes_ += matrix->size_bytes();
  return true;
}

void Shard::embed(std::span<const uint32_t> tokens, float* out) const {
  if (embedding_.empty()) throw std::logic_error("this shard holds no embedding");
  for (uint32_t token : tokens) {
    if (token >= config_.vocab_size) {
      throw std::invalid_argument("token " + std::to_string(token) + " of a vocabulary of " +
                                  std::to_string(config_.vocab_size));
    }
    embedding_.read_row(token, out);
    out += config_.hidden_size;
  }
}

}  // namespace hearth
