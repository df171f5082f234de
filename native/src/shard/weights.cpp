#include "shard/weights.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace hearth {
namespace {

bool makes_layer_inputs(const ShardConfig& config) {
  return config.layer_inputs && config.layers.begin == 0;
}

}  // namespace

Weights::Weights(const ShardConfig& config, const DiskWeights& disk, MatrixStore* store)
    : first_layer_(config.layers.begin), store_(store), blocks_(config.layers.size()) {
  for (const size_t layer : disk.layers) {
    if (layer < config.layers.begin || layer >= config.layers.end) {
      throw std::invalid_argument("layer " + std::to_string(layer) + " on disk is not one of " +
                                  std::to_string(config.layers.begin) + " to " +
                                  std::to_string(config.layers.end));
    }
  }
  if (!disk.layers.empty()) {
    std::vector<size_t> own = disk.layers;
    std::sort(own.begin(), own.end());
    own.erase(std::unique(own.begin(), own.end()), own.end());
    for (size_t& layer : own) layer -= first_layer_;
    stream_ = std::make_unique<LayerStream>(std::move(own), disk.folder);
  }
  for (size_t n = 0; n < blocks_.size(); ++n) {
    const std::string prefix = "layers." + std::to_string(config.layers.begin + n) + ".";
    if (std::holds_alternative<LatentAttentionConfig>(config.kind_of(n).mixer))
      blocks_[n].mixer.emplace<LatentAttention>();
    if (std::holds_alternative<GatedDeltaConfig>(config.kind_of(n).mixer))
      blocks_[n].mixer.emplace<GatedDelta>();
    std::visit([&](auto& mixer) { mixer.add_slots(config, config.kind_of(n), prefix, slots_); },
               blocks_[n].mixer);
    blocks_[n].feed_forward.add_slots(config, config.kind_of(n), prefix, slots_);
  }
  if (config.embedding) {
    slots_.add("embedding", config.vocab_size, config.hidden_size, embedding_, Home::host);
    if (config.layer_inputs) {
      slots_.add("layer_embedding", config.vocab_size, config.layer_inputs->width(),
                 layer_embedding_, Home::host);
    }
    if (config.learned_positions > 0)
      slots_.add("positions", config.learned_positions, config.hidden_size, positions_, Home::host);
  }
  if (makes_layer_inputs(config)) layer_projection_.add_slots(config, slots_);
  if (config.vocab.size() > 0) output_.add_slots(config, slots_);
}

std::vector<std::string> Weights::missing() const {
  std::vector<std::string> names;
  for (const auto& [name, slot] : slots_) {
    if (slot.loaded_rows != slot.rows) names.push_back(name);
  }
  return names;
}

void Weights::load(const std::string& name, Type type, std::span<const uint8_t> data,
                   size_t first_row, ThreadPool& pool) {
  Slot* slot = slots_.find(name);
  if (slot == nullptr)
    throw std::invalid_argument("this shard has no slice '" + name.substr(0, 64) + "'");
  const SliceShape shape = {slot->rows, slot->columns};
  const Place place = {.layer = streamed_layer(name),
                       .store = slot->home == Home::host ? nullptr : store_};
  try {
    if (slot->loaded_rows == slot->rows) throw std::invalid_argument("it came twice");
    if (first_row != slot->loaded_rows && first_row != 0) {
      throw std::invalid_argument("row " + std::to_string(first_row) + " came where row " +
                                  std::to_string(slot->loaded_rows) + " was next");
    }
    if (auto* const* vector = std::get_if<std::vector<float>*>(&slot->target)) {
      load_vector(**vector, type, data, slot->columns);
      slot->loaded_rows = slot->rows;
    } else if (auto* const* matrices = std::get_if<std::vector<Matrix>*>(&slot->target)) {
      slot->loaded_rows =
          first_row + load_matrices(place, **matrices, type, shape, data, first_row, pool);
    } else {
      Matrix& matrix = *std::get<Matrix*>(slot->target);
      slot->loaded_rows =
          first_row + load_matrix(place, matrix, type, shape, data, first_row, pool);
    }
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument("slice '" + name + "': " + error.what());
  }
  if (slot->loaded_rows != slot->rows) return;
  if (auto* const* matrix = std::get_if<Matrix*>(&slot->target))
    size_bytes_ += (*matrix)->size_bytes();
  else if (auto* const* matrices = std::get_if<std::vector<Matrix>*>(&slot->target))
    for (const Matrix& each : **matrices) size_bytes_ += each.size_bytes();
  else
    size_bytes_ += data.size();
  ++complete_slices_;
}

void Weights::load_vector(std::vector<float>& vector, Type type, std::span<const uint8_t> data,
                          size_t columns) {
  if (type != Type::f32) throw std::invalid_argument("a vector is f32");
  if (data.size() != columns * 4) {
    throw std::invalid_argument("it has " + std::to_string(data.size()) + " bytes, not " +
                                std::to_string(columns * 4));
  }
  vector.resize(columns);
  std::memcpy(vector.data(), data.data(), data.size());
}

std::optional<size_t> Weights::streamed_layer(const std::string& name) const {
  constexpr std::string_view kPrefix = "layers.";
  if (!stream_ || !name.starts_with(kPrefix)) return std::nullopt;
  const size_t layer = std::stoul(name.substr(kPrefix.size())) - first_layer_;
  return stream_->has(layer) ? std::optional(layer) : std::nullopt;
}

size_t Weights::load_matrix(const Place& place, Matrix& matrix, Type type, SliceShape shape,
                            std::span<const uint8_t> data, size_t first_row, ThreadPool& pool) {
  const auto [rows, columns] = shape;
  if (matrix.group_bytes() == 0) {
    // Checked before it takes memory, which an arena does not take back.
    Matrix::check_rows(type, rows, columns, first_row, data.size());
    if (place.layer) {
      matrix = Matrix::elsewhere(type, rows, columns);
      stream_->place(*place.layer, matrix);
    } else if (place.store != nullptr) {
      matrix = Matrix(type, rows, columns, *place.store);
    } else {
      matrix = Matrix(type, rows, columns, &arena_);
    }
  } else if (matrix.type() != type) {
    throw std::invalid_argument("it began as " + std::string(type_name(matrix.type())) +
                                " and cannot go on as " + std::string(type_name(type)));
  }
  return place.layer ? stream_->pack(*place.layer, matrix, first_row, data, pool)
                     : matrix.pack(first_row, data, &pool);
}

size_t Weights::load_matrices(const Place& place, std::vector<Matrix>& matrices, Type type,
                              SliceShape shape, std::span<const uint8_t> data, size_t first_row,
                              ThreadPool& pool) {
  const size_t part = shape.first / matrices.size(), stride = row_bytes(type, shape.second);
  if (data.size() % stride != 0 || data.size() / stride > shape.first - first_row) {
    throw std::invalid_argument("it has " + std::to_string(data.size()) + " bytes from row " +
                                std::to_string(first_row) + " of " + std::to_string(shape.first) +
                                " rows of " + std::to_string(stride));
  }
  size_t row = first_row;
  while (!data.empty()) {
    const size_t within = row % part;
    const size_t bytes = std::min(data.size(), (part - within) * stride);
    row += load_matrix(place, matrices[row / part], type, {part, shape.second}, data.first(bytes),
                       within, pool);
    data = data.subspan(bytes);
  }
  return row - first_row;
}

Program Weights::compile(const ShardConfig& config) const {
  Program program;
  if (!config.ropes.empty()) {
    size_t pairs = 0;
    for (const RopeConfig& rope : config.ropes) pairs += rope.frequencies.size();
    program.size_buffer(BufferId::cos, pairs);
    program.size_buffer(BufferId::sin, pairs);
    program.add(RopeAngles{.ropes = config.ropes});
  }
  if (makes_layer_inputs(config)) layer_projection_.compile(config, program);
  const auto streamed = [&](size_t layer) { return stream_ && stream_->has(layer); };
  for (size_t n = 0; n < blocks_.size(); ++n) {
    if (streamed(n))
      program.add(NextWeights{stream_.get(), n});
    else if (n > 0 && streamed(n - 1))
      program.add(NextWeights{stream_.get(), std::nullopt});
    std::visit([&](const auto& mixer) { mixer.compile(config, n, program); }, blocks_[n].mixer);
    blocks_[n].feed_forward.compile(config, n, program);
  }
  if (streamed(blocks_.size() - 1)) program.add(NextWeights{stream_.get(), std::nullopt});
  if (leaves_partial(config, config.kind_of(blocks_.size() - 1))) program.add(AddPartial{});
  if (config.vocab.size() > 0) output_.compile(config, embedding_, program);
  return program;
}

}  // namespace hearth
