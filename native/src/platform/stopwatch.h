// Time since its making, by a clock that never goes back.
#pragma once

#include <chrono>
#include <cstdint>

namespace hearth {

class Stopwatch {
 public:
  uint64_t nanoseconds() const {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(since_start()).count());
  }
  double seconds() const { return std::chrono::duration<double>(since_start()).count(); }

 private:
  std::chrono::steady_clock::duration since_start() const {
    return std::chrono::steady_clock::now() - start_;
  }

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace hearth
