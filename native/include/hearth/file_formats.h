// The number formats of model files: the shard's own (types.h), and conversions to one of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "hearth/types.h"

namespace hearth {

struct FileFormat {
  std::string_view name;
  // A row is blocks of so many numbers, each in so many bytes.
  size_t block, block_bytes;
  // count blocks of in as f32: out [count * block].
  void (*unpack)(const uint8_t* in, size_t count, float* out);
  // The largest magnitude of the scales and minima of count blocks, or of the numbers where a block
  // is one number; infinity or NaN if one is that.
  float (*largest_scale)(const uint8_t* in, size_t count);
};

// Throws std::invalid_argument naming the formats there are.
const FileFormat& file_format(std::string_view name);

// Columns [begin, end) of rows, from one format to a type of the shard's.
//   in   [rows, columns / block * block_bytes]
//   out  [rows, row_bytes(to, end - begin)]
// Returns the largest magnitude, infinity or NaN if there is one; such a row's bytes mean nothing.
// Throws std::invalid_argument for columns that are not whole blocks, and cuts outside of them.
struct ColumnCut {
  size_t columns, begin, end;
};
float convert_rows(const FileFormat& from, Type to, const ColumnCut& cut,
                   std::span<const uint8_t> in, size_t rows, uint8_t* out);

}  // namespace hearth
