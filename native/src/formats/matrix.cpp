#include "formats/matrix.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "hearth/quant.h"

namespace hearth {
namespace {

size_t element_bytes(Type type) { return type == Type::f32 ? 4 : 2; }

// Offset of bytes [4 i, 4 i + 4) of row `lane` behind a block's scales.
size_t quad_offset(size_t i, size_t lane) { return i * 32 + lane * 4; }

// Interleaves eight rows to one group, which is written front to back in one pass.
template <size_t kBytes>
void pack_elements(const uint8_t* const (&from)[kGroupRows], size_t columns, uint8_t* to) {
  for (size_t c = 0; c < columns; ++c) {
    for (size_t lane = 0; lane < kGroupRows; ++lane, to += kBytes)
      std::memcpy(to, from[lane] + c * kBytes, kBytes);
  }
}

template <size_t kBlockBytes>
void pack_blocks(const uint8_t* const (&from)[kGroupRows], size_t blocks, uint8_t* to) {
  for (size_t b = 0; b < blocks; ++b) {
    const size_t at = b * kBlockBytes;
    for (size_t lane = 0; lane < kGroupRows; ++lane, to += 2) std::memcpy(to, from[lane] + at, 2);
    for (size_t i = 2; i < kBlockBytes; i += 4) {
      for (size_t lane = 0; lane < kGroupRows; ++lane, to += 4)
        std::memcpy(to, from[lane] + at + i, 4);
    }
  }
}

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
    : type_(type), rows_(rows), columns_(columns) {
  group_bytes_ = row_bytes(type, columns) * kGroupRows;
  if (arena == nullptr) own_ = Buffer(size_bytes());
  data_ = arena == nullptr ? own_.data() : arena->take(size_bytes());
}

Matrix::Matrix(Type type, size_t rows, size_t columns, std::span<const uint8_t> data)
    : Matrix(type, rows, columns) {
  if (pack(0, data) != rows)
    throw std::invalid_argument(bad_rows(type, rows, columns, 0, data.size()));
}

size_t Matrix::pack(size_t first, std::span<const uint8_t> data, ThreadPool* pool) {
  const size_t stride = group_bytes_ / kGroupRows;
  const size_t rows = check_rows(type_, rows_, columns_, first, data.size());
  uint8_t* to = data_ + first / kGroupRows * group_bytes_;
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
  for (size_t g = begin; g < end; ++g) {
    const uint8_t* from[kGroupRows];
    for (size_t lane = 0; lane < kGroupRows; ++lane) {
      const size_t row = g * kGroupRows + lane;
      from[lane] = row < rows ? data.data() + row * stride : zeros;
    }
    uint8_t* to = packed + g * group_bytes_;
    switch (type_) {
      case Type::f32:
        pack_elements<4>(from, columns_, to);
        break;
      case Type::f16:
        pack_elements<2>(from, columns_, to);
        break;
      case Type::q80:
        pack_blocks<kQ80BlockBytes>(from, columns_ / kBlock, to);
        break;
      case Type::q40:
        pack_blocks<kQ40BlockBytes>(from, columns_ / kBlock, to);
        break;
    }
  }
}

void Matrix::read_row(size_t row, float* out) const {
  const uint8_t* from = group(row / kGroupRows);
  const size_t lane = row % kGroupRows;
  std::vector<uint8_t> bytes(group_bytes_ / kGroupRows);
  if (!is_quantized(type_)) {
    const size_t size = element_bytes(type_);
    for (size_t c = 0; c < columns_; ++c)
      std::memcpy(bytes.data() + c * size, from + (c * kGroupRows + lane) * size, size);
  } else {
    const size_t block_bytes = type_ == Type::q80 ? kQ80BlockBytes : kQ40BlockBytes;
    const size_t quarters = (block_bytes - 2) / 4;
    uint8_t* to = bytes.data();
    for (size_t b = 0; b < columns_ / kBlock; ++b) {
      std::memcpy(to, from + 2 * lane, 2);
      for (size_t i = 0; i < quarters; ++i)
        std::memcpy(to + 2 + 4 * i, from + 2 * kGroupRows + quad_offset(i, lane), 4);
      to += block_bytes;
      from += kGroupRows * block_bytes;
    }
  }
  dequantize_row(type_, bytes.data(), columns_, out);
}

}  // namespace hearth
