// Devices of a shard: "cpu", or a GPU by Vulkan, "vulkan:N".
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace hearth {

// A device that is not there, cannot do what is asked, has no memory left, or is lost.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct DeviceInfo {
  std::string id;       // "vulkan:0"
  std::string name;     // as its driver says
  std::string kind;     // "discrete", "integrated", "virtual", "cpu" (drawn by the CPU) or "other"
  size_t memory_bytes;  // of its own largest heap
  size_t free_bytes;    // of it, for this process; all of it where the driver does not say
};

// False for a build without Vulkan.
bool has_vulkan();

// The GPUs that this build and this machine's drivers offer, if any.
std::vector<DeviceInfo> list_devices();

// The number of "vulkan" (0) or "vulkan:N". Throws std::invalid_argument for other text.
size_t parse_vulkan_device(const std::string& id);

}  // namespace hearth
