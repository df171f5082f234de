#include "shard/pass.h"

namespace hearth {
namespace {

void run_on_thread(const Program& program, Pass& pass, size_t thread) {
  const bool output = !pass.batch.output_rows().empty();
  for (const Program::Instruction& instruction : program.instructions()) {
    if (instruction.output_only && !output) return;
    if (instruction.barrier_before) pass.pool.barrier();
    std::visit([&](const auto& operation) { operation.run(pass, thread); }, instruction.operation);
    if (pass.error) return;  // all threads read the same, behind a barrier of what set it
  }
}

}  // namespace

void run_program(const Program& program, Pass& pass) {
  pass.pool.run([&](size_t thread) { run_on_thread(program, pass, thread); });
  if (pass.error) std::rethrow_exception(pass.error);
}

}  // namespace hearth
