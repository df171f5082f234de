#include "bindings.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Hearth's compute core: quantization, shards and their steps, sampling.";
  hearth::bindings::bind_formats(module);
  hearth::bindings::bind_front(module);
  hearth::bindings::bind_machine(module);
  hearth::bindings::bind_lanes(module);
  hearth::bindings::bind_shard(module);
  hearth::bindings::bind_sampler(module);
}
