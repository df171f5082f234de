// AVX2 with FMA and F16C. tests/test_kernels.cpp compares each kernel with its twin in
// scalar/kernels.cpp.
#include "../generic/table.h"
#include "blocks.h"

namespace hearth {

extern constexpr Kernels kAvx2Kernels =
    kernels_of<Avx2>("avx2", matmul_blocks<Avx2, Avx2Bytes>, matmul_blocks<Avx2, Avx2Nibbles>);

}  // namespace hearth
