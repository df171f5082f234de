// AVX-512 with VNNI (Intel since 2019, AMD since 2022), for the products of blocks; everything else
// is as AVX2 has it. tests/test_kernels.cpp compares each kernel with its twin in
// scalar/kernels.cpp.
#include "../avx2/vec.h"
#include "../generic/table.h"
#include "blocks.h"

namespace hearth {

extern constexpr Kernels kAvx512Kernels = kernels_of<Avx512Bytes, Avx2>("avx512");

}  // namespace hearth
