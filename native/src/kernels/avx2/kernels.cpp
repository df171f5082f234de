// AVX2 with FMA and F16C. Each kernel is held to its twin in scalar/kernels.cpp by
// tests/test_kernels.cpp.
#include "../generic/table.h"
#include "avx2.h"
#include "vec.h"

namespace hearth {

extern constexpr Kernels kAvx2Kernels = table<Avx2>("avx2", {.matmul_f32 = avx2::matmul_f32,
                                                             .matmul_f16 = avx2::matmul_f16,
                                                             .matmul_q80 = avx2::matmul_q80,
                                                             .matmul_q40 = avx2::matmul_q40});

}  // namespace hearth
