// The CPU: its threads run the program together.
#pragma once

#include <memory>

#include "hearth/threads.h"
#include "shard/backend.h"

namespace hearth {

// The config and the pool must outlive it.
std::unique_ptr<Backend> make_cpu_backend(const ShardConfig& config, ThreadPool& pool);

}  // namespace hearth
