// A GPU: the shard's program as commands that are recorded once for each shape of step.
#pragma once

#include <cstddef>
#include <memory>

#include "hearth/threads.h"
#include "shard/backend.h"

namespace hearth {

// device: see parse_vulkan_device. The config and the pool, for what the host does in a step, must
// outlive it. Throws DeviceError for a device that is not there, or a config that it cannot run.
std::unique_ptr<Backend> make_vulkan_backend(const ShardConfig& config, ThreadPool& pool,
                                             size_t device);

}  // namespace hearth
