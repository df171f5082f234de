// AVX-512 with VNNI (Intel since 2019, AMD since 2022), for matrix products and attention;
// everything else is as AVX2 has it. tests/test_kernels.cpp compares each kernel with its twin in
// scalar/kernels.cpp.
#include "../avx2/vec.h"
#include "../generic/table.h"
#include "blocks.h"

namespace hearth {
namespace {

// Pages that do not fill vectors of sixteen take those of eight. The results are the same.
template <typename Number>
void attend_page(const AttendArgs& a) {
  if (a.stride % Avx512::kWidth == 0 && a.value_size % Avx512::kWidth == 0)
    attend<Avx512, Number>(a);
  else
    attend<Avx2, Number>(a);
}

constexpr Kernels with_wide_attention(Kernels kernels) {
  kernels.attend_f32 = attend_page<float>;
  kernels.attend_f16 = attend_page<uint16_t>;
  return kernels;
}

}  // namespace

extern constexpr Kernels kAvx512Kernels =
    with_wide_attention(kernels_of<Avx512Bytes, Avx2, Avx512>("avx512"));

}  // namespace hearth
