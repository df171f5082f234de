// The table of FEAT_DotProd: all but the products of blocks is as NEON has it.
#include "dotprod.h"

#include "../generic/table.h"

namespace hearth {

extern constexpr Kernels kDotprodKernels = kernels_of<DotprodBytes>("dotprod");

}  // namespace hearth
