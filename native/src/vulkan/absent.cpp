// A build without Vulkan: it lists no GPUs, and says why it cannot use one.
#include "hearth/devices.h"
#include "vulkan/backend.h"

namespace hearth {

bool has_vulkan() { return false; }

std::vector<DeviceInfo> list_devices() { return {}; }

std::unique_ptr<Backend> make_vulkan_backend(const ShardConfig&, ThreadPool&, size_t) {
  throw DeviceError(
      "this build of Hearth has no Vulkan: build it where glslc and Vulkan's headers are installed "
      "(Debian: glslc, libvulkan-dev)");
}

}  // namespace hearth
