#include "formats/matrix.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "formats/block_codecs.h"
#include "hearth/quant.h"

namespace hearth {
namespace {

// Of a matrix of a store: what is packed at once on its way there.
constexpr size_t kPassingBytes = size_t{8} << 20;

// The piece that is interleaved: a block, or a whole row of floats.
class Pieces {
 public:
  Pieces(Type type, size_t row_bytes)
      : row_{{0, row_bytes, info_of(type).block_bytes}},
        pieces(is_quantized(type) ? pieces_of(type) : row_),
        bytes(is_quantized(type) ? info_of(type).block_bytes : row_bytes) {}
  Pieces(const Pieces&) = delete;

 private:
  const Piece row_[1];

 public:
  const std::span<const Piece> pieces;
  const size_t bytes;
};

std::string bad_rows(Type type, size_t rows, size_t columns, size_t first, size_t bytes) {
  return std::to_string(bytes) + " bytes from row " + std::to_string(first) +
         " on of a matrix of " + std::to_string(rows) + " x " + std::to_string(columns) + " in " +
         std::string(type_name(type)) + ", whose rows have " +
         std::to_string(row_bytes(type, columns)) + " bytes and come in groups of " +
         std::to_string(kGroupRows);
}

}  // namespace

size_t Matrix::check_rows(Type type, size_t rows, size_t columns, size_t first, size_t bytes) {
  const size_t stride = row_bytes(type, columns);
  const size_t count = stride == 0 ? rows : bytes / stride;
  if (count * stride != bytes || (count == 0 && rows > 0) || first > rows || count > rows - first ||
      first % kGroupRows != 0 || (count % kGroupRows != 0 && first + count != rows))
    throw std::invalid_argument(bad_rows(type, rows, columns, first, bytes));
  return count;
}

Matrix::Matrix(Type type, size_t rows, size_t columns, Arena* arena)
    : Matrix(elsewhere(type, rows, columns)) {
  if (arena == nullptr) own_ = Buffer(size_bytes());
  data_ = arena == nullptr ? own_.data() : arena->take(size_bytes());
}

Matrix Matrix::elsewhere(Type type, size_t rows, size_t columns) {
  Matrix matrix;
  matrix.type_ = type;
  matrix.rows_ = rows;
  matrix.columns_ = columns;
  matrix.group_bytes_ = row_bytes(type, columns) * kGroupRows;
  return matrix;
}

Matrix::Matrix(Type type, size_t rows, size_t columns, MatrixStore& store)
    : Matrix(elsewhere(type, rows, columns)) {
  store_ = &store;
  stored_ = store.take(size_bytes());
}

Matrix::Matrix(Type type, size_t rows, size_t columns, std::span<const uint8_t> data)
    : Matrix(type, rows, columns) {
  if (pack(0, data) != rows)
    throw std::invalid_argument(bad_rows(type, rows, columns, 0, data.size()));
}

size_t Matrix::pack(size_t first, std::span<const uint8_t> data, ThreadPool* pool) {
  if (store_ == nullptr)
    return pack_to(data_ + first / kGroupRows * group_bytes_, first, data, pool);
  const size_t rows = check_rows(type_, rows_, columns_, first, data.size());
  if (data.empty()) return rows;
  const size_t stride = group_bytes_ / kGroupRows;
  const size_t part = std::max<size_t>(kPassingBytes / group_bytes_, 1) * kGroupRows;
  const auto groups_of = [](size_t count) { return (count + kGroupRows - 1) / kGroupRows; };
  std::vector<uint8_t> packed(groups_of(std::min(part, rows)) * group_bytes_);
  for (size_t done = 0; done < rows; done += part) {
    const size_t count = std::min(part, rows - done), row = first + done;
    pack_to(packed.data(), row, data.subspan(done * stride, count * stride), pool);
    store_->write(stored_, row / kGroupRows * group_bytes_,
                  std::span(packed).first(groups_of(count) * group_bytes_));
  }
  return rows;
}

size_t Matrix::pack_to(uint8_t* to, size_t first, std::span<const uint8_t> data,
                       ThreadPool* pool) const {
  const size_t stride = group_bytes_ / kGroupRows;
  const size_t rows = check_rows(type_, rows_, columns_, first, data.size());
  const size_t groups = (rows + kGroupRows - 1) / kGroupRows;
  // Allocated here because work on the pool must not throw.
  const std::vector<uint8_t> zeros(rows % kGroupRows ? stride : 0);
  if (pool == nullptr) {
    pack_groups(data, rows, zeros.data(), 0, groups, to);
  } else {
    pool->run([&](size_t thread) {
      const auto [begin, end] = split(groups, pool->size(), thread);
      pack_groups(data, rows, zeros.data(), begin, end, to);
    });
  }
  return rows;
}

void Matrix::pack_groups(std::span<const uint8_t> data, size_t rows, const uint8_t* zeros,
                         size_t begin, size_t end, uint8_t* packed) const {
  const size_t stride = group_bytes_ / kGroupRows;
  const Pieces block(type_, stride);
  for (size_t g = begin; g < end; ++g) {
    const uint8_t* from[kGroupRows];
    for (size_t lane = 0; lane < kGroupRows; ++lane) {
      const size_t row = g * kGroupRows + lane;
      from[lane] = row < rows ? data.data() + row * stride : zeros;
    }
    uint8_t* to = packed + g * group_bytes_;
    for (size_t at = 0; at < stride; at += block.bytes, to += kGroupRows * block.bytes)
      pack_block(block.pieces, from, at, to);
  }
}

void Matrix::read_row(size_t row, float* out) const {
  std::vector<uint8_t> bytes(group_bytes_ / kGroupRows);
  const Pieces block(type_, bytes.size());
  const uint8_t* from = group(row / kGroupRows);
  for (size_t at = 0; at < bytes.size(); at += block.bytes, from += kGroupRows * block.bytes)
    unpack_lane(block.pieces, from, row % kGroupRows, bytes.data() + at);
  dequantize_row(type_, bytes.data(), columns_, out);
}

}  // namespace hearth
