// NEON as every ARMv8-A CPU has it, Raspberry Pi 3 and 4 among them. tests/test_kernels.cpp
// compares each kernel with its twin in scalar/kernels.cpp.
#include "../generic/table.h"
#include "blocks.h"

namespace hearth {

extern constexpr Kernels kNeonKernels = kernels_of<NeonBytes>("neon");

}  // namespace hearth
