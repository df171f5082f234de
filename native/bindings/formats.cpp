// Weight types and conversions between them.
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "hearth/file_formats.h"
#include "hearth/quant.h"

namespace py = pybind11;

namespace hearth::bindings {
namespace {

Bytes quantize(const Floats& x, const std::string& name) {
  if (x.ndim() != 2) throw std::invalid_argument("quantize takes [rows, columns]");
  const Type type = parse_type(name);
  const size_t rows = x.shape(0), columns = x.shape(1), stride = row_bytes(type, columns);
  Bytes out({rows, stride});
  const float* source = x.data();
  uint8_t* target = out.mutable_data();
  const WithoutGil released;
  for (size_t r = 0; r < rows; ++r)
    quantize_row(type, source + r * columns, columns, target + r * stride);
  return out;
}

Floats dequantize(const Bytes& data, const std::string& name, size_t columns) {
  const Type type = parse_type(name);
  const size_t stride = row_bytes(type, columns);
  if (data.ndim() != 2 || static_cast<size_t>(data.shape(1)) != stride) {
    throw std::invalid_argument("dequantize takes [rows, " + std::to_string(stride) +
                                "] bytes for rows of " + std::to_string(columns) + " columns of " +
                                name);
  }
  const size_t rows = data.shape(0);
  Floats out({rows, columns});
  const uint8_t* source = data.data();
  float* target = out.mutable_data();
  const WithoutGil released;
  for (size_t r = 0; r < rows; ++r)
    dequantize_row(type, source + r * stride, columns, target + r * columns);
  return out;
}

// uint8 [rows, bytes of a row], checked.
const FileFormat& format_of(const Bytes& data, const std::string& name) {
  const FileFormat& format = file_format(name);
  if (data.ndim() != 2 || data.shape(1) % static_cast<py::ssize_t>(format.block_bytes) != 0) {
    throw std::invalid_argument("rows of " + name + " are [rows, bytes] in blocks of " +
                                std::to_string(format.block_bytes) + " bytes");
  }
  return format;
}

py::tuple convert(const Bytes& data, const std::string& source, const std::string& target,
                  size_t begin, size_t end) {
  const FileFormat& from = format_of(data, source);
  const Type to = parse_type(target);
  const size_t rows = data.shape(0);
  const size_t columns = data.shape(1) / from.block_bytes * from.block;
  if (begin > end || end > columns) {  // before anything is made that large
    throw std::invalid_argument("columns " + std::to_string(begin) + " to " + std::to_string(end) +
                                " of rows of " + std::to_string(columns));
  }
  Bytes out({rows, row_bytes(to, end - begin)});
  const std::span in(data.data(), static_cast<size_t>(data.size()));
  uint8_t* bytes = out.mutable_data();
  float largest = 0.0f;
  {
    const WithoutGil released;
    largest = convert_rows(from, to, {columns, begin, end}, in, rows, bytes);
  }
  return py::make_tuple(out, largest);
}

float largest_scale(const Bytes& data, const std::string& name) {
  const FileFormat& format = format_of(data, name);
  if (format.largest_scale == nullptr)
    throw std::invalid_argument("a block of " + name + " has more than one scale");
  const uint8_t* bytes = data.data();
  const size_t blocks = static_cast<size_t>(data.size()) / format.block_bytes;
  const WithoutGil released;
  return format.largest_scale(bytes, blocks);
}

Bytes random_slice(const std::string& name, uint64_t seed, size_t row_begin, size_t rows,
                   size_t column_begin, size_t columns, size_t total_columns, float scale) {
  const Type type = parse_type(name);
  if (column_begin > total_columns || columns > total_columns - column_begin) {
    throw std::invalid_argument("columns " + std::to_string(column_begin) + " + " +
                                std::to_string(columns) + " exceed the row's " +
                                std::to_string(total_columns));
  }
  Bytes out({rows, row_bytes(type, columns)});
  uint8_t* target = out.mutable_data();
  const WithoutGil released;
  random_rows(type, {seed, row_begin, rows, column_begin, columns, scale}, target);
  return out;
}

}  // namespace

void bind_formats(py::module_& module) {
  using namespace py::literals;
  module.def(
      "row_bytes",
      [](const std::string& type, size_t columns) { return row_bytes(parse_type(type), columns); },
      "type"_a, "columns"_a, "Bytes of one row of `columns` elements.");
  module.def("quantize", &quantize, "x"_a, "type"_a,
             "f32 [rows, columns] -> uint8 [rows, row_bytes(type, columns)].");
  module.def("dequantize", &dequantize, "data"_a, "type"_a, "columns"_a,
             "uint8 [rows, row_bytes(type, columns)] -> f32 [rows, columns].");
  module.def("convert", &convert, "data"_a, "source"_a, "target"_a, "begin"_a, "end"_a,
             "Columns [begin, end) of rows, to another type; and the largest magnitude.");
  module.def("largest_scale", &largest_scale, "data"_a, "type"_a,
             "The largest scale, or number, of rows of f32, f16, bf16, q80 or q40.");
  module.def("random_slice", &random_slice, "type"_a, "seed"_a, "row_begin"_a, "rows"_a,
             "column_begin"_a, "columns"_a, "total_columns"_a, "scale"_a,
             "A cut of a random matrix: the same bytes as that place of the whole.");
}

}  // namespace hearth::bindings
