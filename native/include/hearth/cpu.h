// Which kernels this machine can run, and which are in use. Kernels are chosen when a shard is
// made.
#pragma once

#include <string>
#include <vector>

namespace hearth {

struct Kernels;

// Instructions of x86-64-v2 that this CPU lacks, such as "SSE4.1": libraries that Hearth's Python
// imports (NumPy) are compiled for that level. None on other architectures.
std::vector<std::string> missing_instructions();
// Best first; "scalar" is always the last.
std::vector<std::string> instruction_sets();
// nullptr when this CPU (or this build) lacks them.
const Kernels* find_kernels(const std::string& name);
// The kernels for new shards: the best there are, or those chosen by use_kernels or by the
// environment variable HEARTH_INSTRUCTION_SET. Throws std::invalid_argument when that variable
// names kernels that this machine lacks.
const Kernels& kernels_in_use();
// Throws std::invalid_argument naming those that can be had.
void use_kernels(const std::string& name);

}  // namespace hearth
