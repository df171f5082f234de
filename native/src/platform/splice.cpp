#include "platform/splice.h"

#include "platform/system.h"

#ifdef HEARTH_SPLICE
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace hearth {

#ifdef HEARTH_SPLICE

constexpr size_t kPipe = 1 << 20;

bool Conveyor::open() {
  int ends[2];
  if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) return false;
  out_.reset(ends[0]);
  in_.reset(ends[1]);
  // A filter of system calls may refuse it, as may a kernel that only looks like Linux.
  if (splice(out_.get(), nullptr, in_.get(), nullptr, 0, 0) != 0) {
    clear();
    return false;
  }
  fcntl(ends[0], F_SETPIPE_SZ, static_cast<int>(kPipe));  // else it has 64 KiB
  return true;
}

long Conveyor::take(int from) {
  while (true) {
    const ssize_t count =
        splice(from, nullptr, in_.get(), nullptr, kPipe, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (count >= 0) {
      held_ += static_cast<size_t>(count);
      return count;
    }
    if (errno != EINTR) return errno == EAGAIN ? kWouldBlock : kSocketFailed;
  }
}

bool Conveyor::flush(int to) {
  while (held_ > 0) {
    const ssize_t count =
        splice(out_.get(), nullptr, to, nullptr, held_, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (count > 0) {
      held_ -= static_cast<size_t>(count);
    } else if (count == 0 || errno == EAGAIN) {
      return count != 0;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

#else

bool Conveyor::open() { return false; }
long Conveyor::take(int) { return kSocketFailed; }
bool Conveyor::flush(int) { return false; }

#endif

void Conveyor::clear() {
  out_.reset();
  in_.reset();
  held_ = 0;
}

}  // namespace hearth
