// Memory for the buffers of a step. Buffers whose values are never needed at the same time share
// memory: which, follows from the program (BufferPlan).
#pragma once

#include <cstddef>

#include "layers/buffers.h"
#include "layers/program.h"
#include "platform/memory.h"

namespace hearth {

class Workspace {
 public:
  // scratch: floats of scratch memory for each of `threads` threads. Throws std::bad_alloc.
  void resize(const PerBuffer<BufferPlan>& plan, size_t rows, size_t scratch, size_t threads);
  // Gives a name to memory of the caller's: [rows, columns].
  void bind(BufferId id, float* x, size_t columns) { buffers_[id] = {.x = x, .columns = columns}; }

  const Activations& operator[](BufferId id) const { return buffers_[id]; }
  // Of the last `resize`.
  size_t size_bytes() const { return used_; }

 private:
  Buffer memory_;  // grows to the largest step seen
  size_t used_ = 0;
  PerBuffer<Activations> buffers_;
};

}  // namespace hearth
