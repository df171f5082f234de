#include "shard/layer_stream.h"
#include "shard/pass.h"

namespace hearth {

Access NextWeights::access() const {
  return {.reads = {}, .writes = {}, .division = Division::other};
}

void NextWeights::run(Pass& pass, size_t thread) const {
  pass.pool.barrier();
  if (thread == 0) {
    try {
      stream->next(layer);
    } catch (...) {
      pass.error = std::current_exception();
    }
  }
  pass.pool.barrier();
}

}  // namespace hearth
