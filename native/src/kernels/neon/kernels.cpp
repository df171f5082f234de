// NEON as every ARMv8-A CPU has it, Raspberry Pi 3 and 4 among them. Then the tables of the newer
// instruction sets, which differ in the products of int8. tests/test_kernels.cpp compares each
// kernel with its twin in scalar/kernels.cpp.
#include "../generic/table.h"
#include "blocks.h"
#include "neon.h"

namespace hearth {
namespace {

constexpr Kernels kNeon =
    kernels_of<Neon>("neon", matmul_blocks<Neon, NeonBytes>, matmul_blocks<Neon, NeonNibbles>);

}  // namespace

extern constexpr Kernels kNeonKernels = kNeon;
extern constexpr Kernels kDotprodKernels =
    with_blocks(kNeon, "dotprod", dotprod::matmul_q80, dotprod::matmul_q40);
extern constexpr Kernels kI8mmKernels =
    with_blocks(kNeon, "i8mm", i8mm::matmul_q80, i8mm::matmul_q40);

}  // namespace hearth
