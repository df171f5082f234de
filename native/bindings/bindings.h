// What the binding files share. The bindings check what Python hands over and translate it; they
// compute nothing.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace hearth::bindings {

using Floats = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;
using Ids = pybind11::array_t<uint32_t, pybind11::array::c_style | pybind11::array::forcecast>;
using Bytes = pybind11::array_t<uint8_t, pybind11::array::c_style>;

void bind_numbers(pybind11::module_& module);
void bind_shard(pybind11::module_& module);

}  // namespace hearth::bindings
