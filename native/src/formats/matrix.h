// A weight matrix, packed on arrival for the kernels: rows interleaved in groups of eight, so that
// one load holds the same columns of eight rows and no horizontal sum is ever needed.
//
// Bytes of a group (the last group is padded with rows of zeros):
//   floats  column after column, eight elements each
//   blocks  block after block, of each its pieces (block_codecs.h): eight f16 scales, and so on,
//           then the codes: four successive bytes of each row, then the next four
// A packed matrix has as many bytes as the slice it came from (rows rounded up to eight).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "hearth/kernels.h"
#include "hearth/threads.h"
#include "hearth/types.h"
#include "platform/memory.h"

namespace hearth {

// Memory of a backend for packed matrices, beside the host's: a GPU's. It stays as long as the
// store, which outlives its matrices.
class MatrixStore {
 public:
  virtual ~MatrixStore() = default;
  // Makes room for a matrix. Its number, never 0, is how `write` and the backend know it.
  virtual uint64_t take(size_t bytes) = 0;
  virtual void write(uint64_t matrix, size_t offset, std::span<const uint8_t> bytes) = 0;
};

class Matrix {
 public:
  Matrix() = default;
  // Memory for rows that `pack` fills. arena: where the packed weights go, and it must outlive the
  // matrix; nullptr for memory of the matrix's own. Throws std::invalid_argument when the columns
  // are not a whole number of blocks.
  Matrix(Type type, size_t rows, size_t columns, Arena* arena = nullptr);
  // Without memory: `lie_at` says where it is.
  static Matrix elsewhere(Type type, size_t rows, size_t columns);
  // Of a store: the packed rows go there, and the host keeps none. Throws what the store throws.
  Matrix(Type type, size_t rows, size_t columns, MatrixStore& store);
  // All rows at once: [rows, row_bytes(type, columns)].
  Matrix(Type type, size_t rows, size_t columns, std::span<const uint8_t> data);

  // How many rows of a matrix so many bytes are, from row `first` on: whole groups, but for the
  // matrix's last. Throws std::invalid_argument when the bytes are not such rows.
  static size_t check_rows(Type type, size_t rows, size_t columns, size_t first, size_t bytes);
  // Packs rows from `first` on, [n, row_bytes(type, columns)], that check_rows finds right; n.
  // pool: threads to pack with; most of packing is the first touch of new memory. Throws what the
  // store throws.
  size_t pack(size_t first, std::span<const uint8_t> data, ThreadPool* pool = nullptr);

  // The same to other memory, which begins with the group of row `first`; has no effect on the
  // matrix.
  size_t pack_to(uint8_t* to, size_t first, std::span<const uint8_t> data,
                 ThreadPool* pool = nullptr) const;
  // Its groups are there from now on, packed.
  void lie_at(uint8_t* data) { data_ = data; }

  Type type() const { return type_; }
  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  size_t groups() const { return (rows_ + kGroupRows - 1) / kGroupRows; }
  size_t group_bytes() const { return group_bytes_; }
  size_t size_bytes() const { return groups() * group_bytes_; }
  bool empty() const { return data_ == nullptr && stored_ == 0; }
  // Its number in the store; 0 for a matrix in the host's memory. What follows needs the latter.
  uint64_t stored() const { return stored_; }
  const uint8_t* group(size_t index) const { return data_ + index * group_bytes_; }

  // One row as f32: [columns].
  void read_row(size_t row, float* out) const;

 private:
  // Groups [begin, end) of `rows` rows of data; zeros: a row to fill the last group with.
  void pack_groups(std::span<const uint8_t> data, size_t rows, const uint8_t* zeros, size_t begin,
                   size_t end, uint8_t* packed) const;

  Type type_ = Type::f32;
  size_t rows_ = 0, columns_ = 0, group_bytes_ = 0;
  Buffer own_;
  uint8_t* data_ = nullptr;
  MatrixStore* store_ = nullptr;
  uint64_t stored_ = 0;
};

}  // namespace hearth
