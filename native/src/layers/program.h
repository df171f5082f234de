// A forward pass as a list of operations, made once the weights are there and run by every step.
#pragma once

#include <cstddef>
#include <vector>

#include "layers/buffers.h"
#include "layers/operations.h"

namespace hearth {

// A buffer of the workspace: its size, and with which others it must not share memory.
struct BufferPlan {
  size_t columns = 0;      // 0: this program has no such buffer
  bool quantized = false;  // it needs a quantized copy
  BufferSet apart_from;
};

class Program {
 public:
  struct Instruction {
    Operation operation;
    bool barrier_before;  // placed by `add`
    bool output_only;     // skipped in steps without output rows
    size_t phase;         // operations of one phase may run at the same time
  };

  // Adds an operation at the end, with a barrier before it where it needs one: where it reads what
  // an operation since the last barrier wrote, or writes what such an operation read or wrote.
  void add(Operation operation);
  // Operations added from here on only make the logits.
  void begin_output() { output_only_ = true; }
  // Sizes a buffer of the workspace; quantized: an operation needs its quantized copy.
  void size_buffer(BufferId id, size_t columns, bool quantized = false);

  const std::vector<Instruction>& instructions() const { return instructions_; }
  // Number of AllReduce operations.
  uint32_t syncs() const { return syncs_; }
  // Of all buffers. Two whose values are needed at the same time are kept apart.
  PerBuffer<BufferPlan> plan_buffers() const;

 private:
  std::vector<Instruction> instructions_;
  PerBuffer<BufferPlan> sizes_;
  bool output_only_ = false;
  uint32_t syncs_ = 0;
  size_t phase_ = 0;
  size_t phase_start_ = 0;  // its first instruction
};

}  // namespace hearth
