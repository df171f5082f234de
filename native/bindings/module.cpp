#include "bindings.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "Hearth's compute core: quantization, shards and their steps, sampling.";
  hearth::bindings::bind_numbers(module);
  hearth::bindings::bind_shard(module);
}
