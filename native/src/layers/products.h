// Matrix products (GEMM, or GEMV of one row): one input, rows of one or several weights.
#pragma once

#include <cstddef>
#include <vector>

#include "formats/matrix.h"
#include "hearth/kernels.h"
#include "layers/buffers.h"

namespace hearth {

// Groups of eight weight rows that a thread takes at once, at least, in a product of `rows` rows.
size_t unit_groups(size_t rows);

// Columns [begin, end) of one row of a buffer, on block borders.
void quantize_columns(const Kernels& kernels, const Activations& buffer, size_t row, size_t begin,
                      size_t end);

// y[r][w] = input row r times weight row w, for weight rows in groups [begin, end) and below
// `weight_rows`; y: [rows, weight_rows], or [rows, y_stride]. scratch: see MatmulArgs.
void multiply_groups(const Kernels& kernels, const Activations& input, size_t rows,
                     const Matrix& weight, size_t weight_rows, size_t begin, size_t end, float* y,
                     void* scratch, size_t y_stride = 0);

// Columns [begin, end) of all rows of y, and below the bias's size: y += bias. y: [rows,
// bias.size()], or [rows, y_stride].
void add_bias(const std::vector<float>& bias, size_t rows, size_t begin, size_t end, float* y,
              size_t y_stride = 0);

}  // namespace hearth
