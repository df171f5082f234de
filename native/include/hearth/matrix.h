// A weight matrix, packed on arrival for the kernels: rows in groups of eight, so that one load
// holds the same columns of eight rows and no sum across a vector is ever needed.
//
// Bytes of a group, by type (the last group is filled up with rows of zeros):
//   f32, f16  column after column, eight numbers each
//   q80       block after block: eight f16 scales (16 bytes), then eight times 32 bytes: four
//             successive int8 of each row
//   q40       block after block: eight f16 scales, then four times 32 bytes: four successive nibble
//             bytes of each row (byte j: number j low, number j + 16 high)
// A packed matrix has as many bytes as the slice it came from (rows rounded up to eight).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "hearth/kernels.h"
#include "hearth/threads.h"
#include "hearth/types.h"

namespace hearth {

// Memory aligned to 64 bytes.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size);  // zeroed; throws std::bad_alloc
  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }
  // Moves what is filled into huge pages: half as fast again to stream where a TLB miss is dear.
  // Takes about half a second a gigabyte, in which the buffer can be used; `stop` ends it early.
  // Does nothing where the system has no huge pages, or is told to give none.
  void gather(const std::atomic<bool>& stop = false) const;

 private:
  struct Free {
    Free() : size(0) {}
    explicit Free(size_t bytes) : size(bytes) {}
    void operator()(uint8_t* at) const;
    size_t size;
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t size_ = 0;
};

class Matrix {
 public:
  Matrix() = default;
  // data: [rows, row_bytes(type, columns)]; throws std::invalid_argument when its size differs.
  // pool: threads to pack with; most of packing is the first touch of new memory.
  Matrix(Type type, size_t rows, size_t columns, std::span<const uint8_t> data,
         ThreadPool* pool = nullptr);

  Type type() const { return type_; }
  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  size_t groups() const { return (rows_ + kGroupRows - 1) / kGroupRows; }
  size_t group_bytes() const { return group_bytes_; }
  size_t size_bytes() const { return data_.size(); }
  bool empty() const { return data_.size() == 0; }
  const uint8_t* group(size_t index) const { return data_.data() + index * group_bytes_; }

  // See Buffer::gather.
  void gather(const std::atomic<bool>& stop) const { data_.gather(stop); }

  // One row as f32: [columns].
  void read_row(size_t row, float* out) const;

 private:
  // Groups [begin, end) of what the constructor was given; zeros: a row to fill the last group
  // with.
  void pack(std::span<const uint8_t> data, const uint8_t* zeros, size_t begin, size_t end);

  Type type_ = Type::f32;
  size_t rows_ = 0, columns_ = 0, group_bytes_ = 0;
  Buffer data_;
};

}  // namespace hearth
