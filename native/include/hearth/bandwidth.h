// Speed of reading memory, which bounds decode, measured as decode reads.
#pragma once

#include <cstddef>

#include "hearth/threads.h"

namespace hearth {

// Bytes per second of plain reading, all of the pool's threads at once: the median of `repeats`
// passes over `bytes` of memory made for it. Throws std::bad_alloc.
double read_bandwidth(ThreadPool& pool, size_t bytes, size_t repeats);

}  // namespace hearth
