#include "bindings.h"
namespace hearth::bindings {
void bind_shard(pybind11::module_&) {}
}
