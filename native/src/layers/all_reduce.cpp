#include "platform/stopwatch.h"
#include "shard/pass.h"

namespace hearth {

Access AllReduce::access() const {
  return {.reads = {BufferId::partial}, .writes = {BufferId::partial}, .division = Division::other};
}

void AllReduce::run(Pass& pass, size_t thread) const {
  pass.pool.barrier();
  const Activations& partial = pass.buffers[BufferId::partial];
  if (pass.lane == nullptr) {
    const auto [begin, end] = pass.rows_of(thread);
    pass.check_rows(partial, begin, end, number);
    return;
  }
  if (thread == 0) {
    pass.check_rows(partial, 0, pass.batch.rows().size(), number);
    const Stopwatch watch;
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
