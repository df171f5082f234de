#include "platform/stopwatch.h"
#include "shard/pass.h"

namespace hearth {

Access AllReduce::access() const {
  return {.reads = {buffer}, .writes = {buffer}, .division = Division::other};
}

void AllReduce::run(Pass& pass, size_t thread) const {
  pass.pool.barrier();
  const Activations values = pass.buffers[buffer].of_width(columns);
  if (pass.lane == nullptr) {
    const auto [begin, end] = pass.rows_of(thread);
    pass.check_rows(values, begin, end, number);
    return;
  }
  if (thread == 0) {
    pass.check_rows(values, 0, pass.batch.rows().size(), number);
    const Stopwatch watch;
    try {
      pass.lane->all_reduce(values.x, pass.batch.rows().size(), columns, exact);
    } catch (...) {
      pass.error = std::current_exception();
    }
    pass.sync_ns += watch.nanoseconds();
  }
  pass.pool.barrier();
}

}  // namespace hearth
