// What this machine can do: its kernels and its memory.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "hearth/bandwidth.h"
#include "hearth/cpu.h"
#include "hearth/devices.h"
#include "hearth/kernels.h"
#include "hearth/threads.h"

namespace py = pybind11;

namespace hearth::bindings {

void bind_machine(py::module_& module) {
  using namespace py::literals;
  module.def(
      "instruction_set", [] { return std::string(kernels_in_use().name); }, "The kernels in use.");
  module.def("instruction_sets", &instruction_sets, "The kernels that this CPU can run.");
  module.def("missing_instructions", &missing_instructions,
             "Instructions of x86-64-v2 that this CPU lacks; none on other architectures.");
  module.def("set_instruction_set", &use_kernels, "name"_a,
             "Chooses the kernels of shards made from now on.");
  py::register_exception<DeviceError>(module, "DeviceError", PyExc_RuntimeError);
  py::class_<DeviceInfo>(module, "DeviceInfo", "A GPU that Vulkan offers.")
      .def_readonly("id", &DeviceInfo::id)
      .def_readonly("name", &DeviceInfo::name)
      .def_readonly("kind", &DeviceInfo::kind)
      .def_readonly("memory_bytes", &DeviceInfo::memory_bytes)
      .def_readonly("free_bytes", &DeviceInfo::free_bytes);
  module.def("has_vulkan", &has_vulkan, "False for a core that was built without Vulkan.");
  module.def("list_devices", &list_devices, "The GPUs that this build and the drivers offer.");
  module.def("parse_vulkan_device", &parse_vulkan_device, "id"_a,
             "The number of vulkan or vulkan:N.");
  module.def(
      "read_bandwidth",
      [](size_t threads, size_t bytes, size_t repeats, const std::vector<int>& pin) {
        const WithoutGil released;
        ThreadPool pool(threads, pin);
        return read_bandwidth(pool, bytes, repeats);
      },
      "threads"_a, "bytes"_a = size_t{256} << 20, "repeats"_a = 5, "pin"_a = std::vector<int>{},
      "Bytes per second that so many threads read from memory.");
}

}  // namespace hearth::bindings
