#include "vulkan/work.h"

#include <variant>
#include <vector>

#include "layers/experts.h"
#include "layers/gated_delta.h"

namespace hearth::vulkan {
namespace {

// Positions that a row attends to. Nobody knows them when a step is recorded: what is measured
// corrects it.
constexpr size_t kLikelyPositions = 512;

size_t size_of(const Matrix& matrix) { return matrix.rows() * matrix.columns(); }

size_t size_of(const std::vector<Matrix>& matrices) {
  return matrices.empty() ? 0 : matrices.size() * size_of(matrices.front());
}

// Multiply-adds of one row.
struct OfRow {
  size_t operator()(const Products& operation) const {
    size_t work = 0;
    for (const Products::Product& each : operation.products) work += size_of(*each.weight);
    return work;
  }
  size_t operator()(const ActivatedProducts& operation) const {
    const Matrix* up = operation.up.matrix;
    return size_of(*operation.gate.matrix) + (up != nullptr ? size_of(*up) : 0);
  }
  size_t operator()(const HeadProducts& operation) const { return size_of(*operation.weights); }
  size_t operator()(const ExpertProducts& operation) const {
    const Experts& experts = *operation.experts;
    const size_t matrices = operation.config.gated ? 2 : 1;
    return matrices * operation.used * size_of(experts.gate.front());
  }
  size_t operator()(const ExpertOutputs& operation) const {
    return operation.used * size_of(operation.experts->down.front());
  }
  size_t operator()(const Attend& operation) const {
    const AttentionShape& shape = operation.shape;
    return shape.heads * (shape.key_size + shape.value_size) * kLikelyPositions;
  }
  size_t operator()(const DeltaRule& operation) const {
    // The state is scaled, read, added to, and read again.
    const GatedDeltaShape& shape = operation.shape;
    return 4 * shape.value_heads() * shape.key_size * shape.value_size;
  }
  template <typename Operation>
  size_t operator()(const Operation&) const {
    return 0;
  }
};

}  // namespace

double work_of(const Program::Instruction& instruction, const StepShape& shape) {
  const size_t rows = instruction.output_only ? shape.output_rows : shape.rows;
  return static_cast<double>(std::visit(OfRow(), instruction.operation)) *
         static_cast<double>(rows);
}

}  // namespace hearth::vulkan
