#include "layers/products.h"

#include <algorithm>

#include "shard/pass.h"

namespace hearth {

// As many groups as a tile of any kernel has; and, of many rows, enough to make up for the
// activations that a product copies each time.
size_t unit_groups(size_t rows) { return rows > 8 ? 16 : 2; }

void quantize_columns(const Kernels& kernels, const Activations& buffer, size_t row, size_t begin,
                      size_t end) {
  const size_t at = row * buffer.columns + begin;
  const size_t block = row * (buffer.columns / kBlock) + begin / kBlock;
  kernels.quantize(buffer.x + at, end - begin, buffer.q + at, buffer.scales + block,
                   buffer.sums + block);
}

void multiply_groups(const Kernels& kernels, const Activations& input, size_t rows,
                     const Matrix& weight, size_t weight_rows, size_t begin, size_t end, float* y,
                     void* scratch, size_t y_stride) {
  if (begin >= end) return;
  const size_t first = begin * kGroupRows;
  const MatmulArgs args = {
      .weights = weight.group(begin),
      .group_bytes = weight.group_bytes(),
      .groups = end - begin,
      .columns = weight.columns(),
      .rows = std::min(end * kGroupRows, weight_rows) - first,
      .tokens = rows,
      .y = y + first,
      .y_stride = y_stride == 0 ? weight_rows : y_stride,
      .scratch = scratch,
  };
  const QuantizedRows quantized = {.q = input.q, .scales = input.scales, .sums = input.sums};
  multiply(kernels, weight.type(), args, input.x, quantized);
}

void add_bias(const std::vector<float>& bias, size_t rows, size_t begin, size_t end, float* y,
              size_t y_stride) {
  const size_t stride = y_stride == 0 ? bias.size() : y_stride;
  end = std::min(end, bias.size());
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = begin; c < end; ++c) y[r * stride + c] += bias[c];
  }
}

namespace {

size_t groups_of(const Products::Product& product) {
  return (product.rows + kGroupRows - 1) / kGroupRows;
}

}  // namespace

Access Products::access() const {
  Access access = {.reads = {input}, .writes = {BufferId::scratch}, .division = Division::stealing};
  for (const Product& product : products) access.writes = access.writes | BufferSet{product.output};
  return access;
}

void Products::run(Pass& pass, size_t thread) const {
  const size_t rows = output_rows_only ? pass.batch.output_rows().size() : pass.batch.rows().size();
  size_t total = 0;
  for (const Product& product : products) total += groups_of(product);
  pass.queue.begin_phase(thread);
  while (true) {
    auto [begin, end] = pass.queue.take(thread, total, unit_groups(rows));
    if (begin == end) return;
    for (const Product& product : products) {
      const size_t count = groups_of(product);
      float* y = pass.buffers[product.output].x;
      multiply_groups(pass.kernels, pass.buffers[input], rows, *product.weight, product.rows, begin,
                      std::min(end, count), y, pass.buffers[BufferId::scratch].row(thread),
                      product.stride);
      if (product.bias != nullptr)
        add_bias(*product.bias, rows, begin * kGroupRows, end * kGroupRows, y, product.stride);
      begin -= std::min(begin, count);
      end -= std::min(end, count);
    }
  }
}

Access Quantize::access() const {
  return {.reads = {buffer}, .writes = {buffer}, .division = Division::rows};
}

void Quantize::run(Pass& pass, size_t thread) const {
  const Activations each = pass.buffers[buffer].of_width(columns);
  const auto [begin, end] = pass.rows_of(thread);
  for (size_t r = begin; r < end; ++r) quantize_columns(pass.kernels, each, r, 0, each.columns);
}

}  // namespace hearth
