// AVX2 with FMA and F16C. tests/test_kernels.cpp compares each kernel with its twin in
// scalar/kernels.cpp.
#include "../generic/table.h"
#include "blocks.h"

namespace hearth {

extern constexpr Kernels kAvx2Kernels = kernels_of<Avx2Bytes>("avx2");

}  // namespace hearth
