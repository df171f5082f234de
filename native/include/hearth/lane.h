// How a sync travels between the ranks of a stage. The shard knows only this; whether the frames
// ride gRPC streams or the core's own connections is the lane's business.
#pragma once

#include <cstddef>

namespace hearth {

class Lane {
 public:
  virtual ~Lane() = default;

  // Adds up x, [rows, columns], over all ranks, in place. Every rank ends with the same bits.
  // Called by one thread, twice per layer or more, in the same order on every rank. Throws when a
  // rank is lost or the step is given up; the shard then gives the step up too and can take
  // another. exact: in f32, whatever the type of the lane's other sums; for a few numbers that all
  // others depend on.
  virtual void all_reduce(float* x, size_t rows, size_t columns, bool exact) = 0;
  void all_reduce(float* x, size_t rows, size_t columns) { all_reduce(x, rows, columns, false); }
};

}  // namespace hearth
