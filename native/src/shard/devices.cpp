#include "hearth/devices.h"

#include <charconv>

namespace hearth {

size_t parse_vulkan_device(const std::string& id) {
  constexpr std::string_view kName = "vulkan";
  if (id == kName) return 0;
  size_t number = 0;
  const char* end = id.data() + id.size();
  const size_t prefix = kName.size() + 1;
  if (id.starts_with(std::string(kName) + ":") && id.size() > prefix) {
    const auto [at, error] = std::from_chars(id.data() + prefix, end, number);
    if (error == std::errc() && at == end) return number;
  }
  throw std::invalid_argument("'" + id + "' is not a device: they are cpu, vulkan and vulkan:N");
}

}  // namespace hearth
