#include "shard/layer_stream.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "hearth/devices.h"
#include "shard/disk_sum.h"

namespace hearth {
namespace {

// One layer is computed while the next is read.
constexpr size_t kSeats = 2;
// With two pieces under way the disk has always something to do.
constexpr size_t kReaders = 2;
constexpr size_t kPieceBytes = size_t{4} << 20;
constexpr size_t kAlignment = 64;  // of a matrix

constexpr uint64_t whole(uint64_t size, uint64_t unit) { return (size + unit - 1) / unit * unit; }

template <typename Act>
auto on_disk(Act act) {
  try {
    return act();
  } catch (const std::system_error& error) {
    throw DeviceError(std::string("weights on disk: ") + error.what());
  }
}

}  // namespace

LayerStream::LayerStream(std::vector<size_t> layers, const std::string& folder)
    : file_(on_disk([&] { return ScratchFile(folder); })) {
  for (const size_t layer : layers)
    layers_.push_back({.number = layer, .extents = {}, .parts = {}});
}

LayerStream::~LayerStream() {
  {
    const std::lock_guard hold(lock_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& reader : readers_) reader.join();
}

bool LayerStream::has(size_t layer) const {
  return std::any_of(layers_.begin(), layers_.end(),
                     [&](const Layer& each) { return each.number == layer; });
}

LayerStream::Layer& LayerStream::layer_of(size_t number) {
  const auto found = std::find_if(layers_.begin(), layers_.end(),
                                  [&](const Layer& each) { return each.number == number; });
  if (found == layers_.end()) throw std::logic_error("a layer whose weights are in memory");
  return *found;
}

void LayerStream::place(size_t number, Matrix& matrix) {
  Layer& layer = layer_of(number);
  if (last_ != number || layer.extents.empty()) {
    end_ = whole(end_, kScratchUnit);
    layer.size = whole(layer.size, kScratchUnit);
    layer.extents.push_back({end_, layer.size, 0});
    last_ = number;
  }
  const size_t size = whole(matrix.size_bytes(), kAlignment);
  layer.parts.push_back({.matrix = &matrix, .at = layer.size, .offset = end_});
  layer.extents.back().size += size;
  layer.size += size;
  end_ += size;
}

size_t LayerStream::pack(size_t number, Matrix& matrix, size_t first, std::span<const uint8_t> data,
                         ThreadPool& pool) {
  Layer& layer = layer_of(number);
  const auto part = std::find_if(layer.parts.begin(), layer.parts.end(),
                                 [&](const Part& each) { return each.matrix == &matrix; });
  if (part == layer.parts.end()) throw std::logic_error("a matrix without a place in the file");
  const size_t stride = matrix.group_bytes() / kGroupRows;
  packed_.resize(whole(data.size(), stride * kGroupRows));
  const size_t rows = matrix.pack_to(packed_.data(), first, data, &pool);
  const uint64_t offset = part->offset + first / kGroupRows * matrix.group_bytes();
  on_disk([&] { file_.write(offset, packed_); });
  if (first == 0) part->sum = 0;  // it may begin again
  part->sum += disk_sum(offset, packed_);
  return rows;
}

void LayerStream::start() {
  if (!readers_.empty()) return;
  on_disk([&] { file_.finish(); });
  packed_ = {};
  size_t largest = 0;
  for (Layer& layer : layers_) {
    std::vector<Piece> pieces;
    for (const Extent& extent : layer.extents) {
      const size_t size = whole(extent.size, kScratchUnit);
      for (size_t at = 0; at < size; at += kPieceBytes)
        pieces.push_back({extent.offset + at, extent.at + at, std::min(kPieceBytes, size - at)});
    }
    pieces_.push_back(std::move(pieces));
    largest = std::max<size_t>(largest, whole(layer.size, kScratchUnit));
    for (const Part& part : layer.parts) layer.sum += part.sum;
  }
  seats_.resize(std::min(kSeats, layers_.size()));
  for (size_t i = 0; i < seats_.size(); ++i) {
    seats_[i].memory = Buffer(largest + kScratchUnit);
    const auto begin = reinterpret_cast<uintptr_t>(seats_[i].memory.data());
    seats_[i].data = seats_[i].memory.data() + (whole(begin, kScratchUnit) - begin);
    give(seats_[i], i);
    memory_bytes_ += largest;
  }
  // So that they are not taken for matrices that do not exist.
  for (Layer& layer : layers_) {
    for (const Part& part : layer.parts) part.matrix->lie_at(seats_[0].data + part.at);
  }
  for (size_t i = 0; i < kReaders; ++i) readers_.emplace_back([this] { read_ahead(); });
}

void LayerStream::give(Seat& seat, uint64_t turn) {
  seat.turn = turn;
  seat.next = 0;
  seat.left = pieces_of(turn).size();
  seat.sum = 0;
}

void LayerStream::recycle() {
  for (Seat& seat : seats_) {
    if (seat.turn >= turn_ || seat.reading > 0) continue;
    const uint64_t behind = turn_ - seat.turn;
    give(seat, seat.turn + whole(behind, seats_.size()));
  }
}

LayerStream::Seat* LayerStream::to_read() {
  Seat* first = nullptr;
  for (Seat& seat : seats_) {
    const bool due = seat.turn >= turn_ && seat.next < pieces_of(seat.turn).size();
    if (due && (first == nullptr || seat.turn < first->turn)) first = &seat;
  }
  return first;
}

void LayerStream::read_ahead() {
  std::unique_lock hold(lock_);
  while (true) {
    Seat* seat = nullptr;
    changed_.wait(hold, [&] { return stop_ || error_ || (seat = to_read()) != nullptr; });
    if (stop_ || error_) return;
    const Piece piece = pieces_of(seat->turn)[seat->next++];
    ++seat->reading;
    hold.unlock();
    std::exception_ptr error;
    uint64_t sum = 0;
    try {
      const std::span<uint8_t> bytes{seat->data + piece.at, piece.size};
      on_disk([&] { file_.read(piece.offset, bytes); });
      sum = disk_sum(piece.offset, bytes);
    } catch (...) {
      error = std::current_exception();
    }
    hold.lock();
    --seat->reading;
    --seat->left;
    seat->sum += sum;
    const Layer& layer = layers_[seat->turn % layers_.size()];
    if (error) {
      error_ = error;
    } else if (seat->left == 0 && seat->sum != layer.sum) {
      error_ = std::make_exception_ptr(DeviceError("weights on disk: layer " +
                                                   std::to_string(layer.number) +
                                                   " comes back from the disk damaged"));
    }
    recycle();
    changed_.notify_all();
  }
}

void LayerStream::next(std::optional<size_t> number) {
  std::unique_lock hold(lock_);
  if (in_use_) ++turn_;
  in_use_ = number.has_value();
  if (number) {
    // A step that failed left some layers out.
    while (layers_[turn_ % layers_.size()].number != *number) ++turn_;
  }
  recycle();
  changed_.notify_all();
  if (!number) return;
  const Seat& seat = seat_of(turn_);
  changed_.wait(hold, [&] { return error_ || (seat.turn == turn_ && seat.left == 0); });
  if (error_) std::rethrow_exception(error_);
  for (const Part& part : layers_[turn_ % layers_.size()].parts)
    part.matrix->lie_at(seat.data + part.at);
}

}  // namespace hearth
