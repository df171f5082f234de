// AVX-512 with VNNI (Intel since 2019, AMD since 2022), for matrix products and attention;
// everything else is as AVX2 has it. tests/test_kernels.cpp compares each kernel with its twin in
// scalar/kernels.cpp.
#include <utility>

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

constexpr Kernels kWide = kernels_of<Avx512Bytes, Avx2, Avx512>("avx512");

// One token reads the weights at memory speed, and two groups side by side are read more slowly
// than one after the other: 40 against 48 tokens per second (TinyLlama, Q4_K_M, one Zen 5 core).
template <size_t kType>
void blocks(const MatmulArgs& a, const QuantizedRows& x) {
  (a.tokens == 1 ? kAvx2Kernels : kWide).matmul_blocks[kType](a, x);
}

constexpr Kernels chosen() {
  Kernels kernels = kWide;
  kernels.attend_f32 = attend_page<float>;
  kernels.attend_f16 = attend_page<uint16_t>;
  [&]<size_t... kType>(std::index_sequence<kType...>) {
    ((kernels.matmul_blocks[kType] = kTypeInfos[kType].block > 1 ? blocks<kType> : nullptr), ...);
  }(std::make_index_sequence<kTypes>());
  return kernels;
}

}  // namespace

extern constexpr Kernels kAvx512Kernels = chosen();

}  // namespace hearth
