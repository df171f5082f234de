// The approximate work of the operations of a step, in the unit that Pacing counts in.
#pragma once

#include "layers/program.h"
#include "vulkan/recorder.h"

namespace hearth::vulkan {

// Multiply-adds of an operation that may take long; 0 of the others.
double work_of(const Program::Instruction& instruction, const StepShape& shape);

}  // namespace hearth::vulkan
