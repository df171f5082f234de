// A pipe that carries bytes from one socket to another inside the kernel: no copies (Linux).
#pragma once

#include <cstddef>

#include "platform/sockets.h"

namespace hearth {

class Conveyor {
 public:
  // False where the system has none, or no descriptors are left.
  bool open();
  bool is_open() const { return out_.open(); }
  bool empty() const { return held_ == 0; }
  // As receive_now, into the pipe.
  long take(int from);
  // Writes to a non-blocking socket. False if the socket failed.
  bool flush(int to);
  void clear();

 private:
  Socket out_, in_;
  size_t held_ = 0;
};

}  // namespace hearth
