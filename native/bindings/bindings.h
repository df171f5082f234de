// What the binding files share. The bindings check what Python hands over and translate it; they
// compute nothing.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>
#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

namespace hearth::bindings {

// Until Python 3.14, a daemon thread that requests the GIL during interpreter shutdown is ended by
// pthread_exit. Its unwinding ends a C++ process with "terminate called without an active
// exception". Such a thread sleeps here instead, until the process ends. `call` takes the GIL, or
// runs Python.
template <typename Call>
auto unless_exiting(Call call) {
#ifdef __GLIBCXX__
  try {
    return call();
  } catch (abi::__forced_unwind&) {
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  }
#else
  return call();
#endif
}

// Gives the GIL up while it lives.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    unless_exiting([this] { PyEval_RestoreThread(state_); });
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// Holds the GIL while it lives, on a thread that gave it up.
class WithGil {
 public:
  WithGil() : state_(unless_exiting([] { return PyGILState_Ensure(); })) {}
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  PyGILState_STATE state_;
};

using Floats = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;
using Ids = pybind11::array_t<uint32_t, pybind11::array::c_style | pybind11::array::forcecast>;
using Bytes = pybind11::array_t<uint8_t, pybind11::array::c_style>;

void bind_formats(pybind11::module_& module);
void bind_front(pybind11::module_& module);
void bind_machine(pybind11::module_& module);
void bind_lanes(pybind11::module_& module);
void bind_config(pybind11::module_& module);
void bind_shard(pybind11::module_& module);
void bind_sampler(pybind11::module_& module);

}  // namespace hearth::bindings
