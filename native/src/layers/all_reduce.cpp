#include "platform/stopwatch.h"
#include "shard/pass.h"

namespace hearth {

Access AllReduce::access() const {
  return {.reads = {BufferId::partial}, .writes = {BufferId::partial}, .division = Division::other};
}

void AllReduce::run(Pass& pass, size_t thread) const {
  pass.pool.barrier();
  if (pass.lane == nullptr) return;
  if (thread == 0) {
    const Stopwatch watch;
    const Activations& partial = pass.buffers[BufferId::partial];
    try {
      pass.lane->all_reduce(partial.x, pass.batch.rows().size(), partial.columns);
    } catch (...) {
      pass.error = std::current_exception();
    }
    pass.sync_ns += watch.nanoseconds();
  }
  pass.pool.barrier();
}

}  // namespace hearth
