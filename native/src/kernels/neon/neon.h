// What the files of the newer Arm instruction sets bring to NEON's table. Entered only after a look
// at the CPU.
#pragma once

#include "hearth/kernels.h"

namespace hearth {

namespace dotprod {
void matmul_q80(const MatmulArgs& a, const QuantizedRows& x);
void matmul_q40(const MatmulArgs& a, const QuantizedRows& x);
}  // namespace dotprod

namespace i8mm {
void matmul_q80(const MatmulArgs& a, const QuantizedRows& x);
void matmul_q40(const MatmulArgs& a, const QuantizedRows& x);
}  // namespace i8mm

}  // namespace hearth
