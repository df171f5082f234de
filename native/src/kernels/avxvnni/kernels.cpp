// AVX-VNNI for the products of blocks; everything else is as AVX2 has it. tests/test_kernels.cpp
// compares each kernel with its twin in scalar/kernels.cpp.
#include "../generic/table.h"
#include "blocks.h"

namespace hearth {

extern constexpr Kernels kAvxVnniKernels = kernels_of<AvxVnniBytes, Avx2>("avxvnni");

}  // namespace hearth
