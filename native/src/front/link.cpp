#include "front/link.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace hearth {

#ifdef MSG_NOSIGNAL
constexpr int kQuietly = MSG_NOSIGNAL;
#else
constexpr int kQuietly = 0;  // SO_NOSIGPIPE is set instead
#endif

void Socket::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

bool Backlog::flush(int fd) {
  if (empty()) return true;
  const long sent = write_some(fd, bytes_.data() + begin_, bytes_.size() - begin_);
  if (sent < 0) return false;
  begin_ += static_cast<size_t>(sent);
  if (empty()) clear();
  return true;
}

void Backlog::clear() {
  // Its memory goes too: most connections never have a backlog again.
  std::vector<uint8_t>().swap(bytes_);
  begin_ = 0;
}

#ifdef SPLICE_F_NONBLOCK

constexpr size_t kPipe = 1 << 20;

bool Conveyor::open() {
  int ends[2];
  if (pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) return false;
  out_.reset(ends[0]);
  in_.reset(ends[1]);
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
    if (errno == EINTR) continue;
    return errno == EAGAIN ? -1 : -2;
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
long Conveyor::take(int) { return -2; }
bool Conveyor::flush(int) { return false; }

#endif

void Conveyor::clear() {
  out_.reset();
  in_.reset();
  held_ = 0;
}

long read_some(int fd, uint8_t* data, size_t size) {
  while (true) {
    const ssize_t count = recv(fd, data, size, 0);
    if (count >= 0) return count;
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == EWOULDBLOCK ? -1 : -2;
  }
}

long write_some(int fd, const uint8_t* data, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t count = send(fd, data + done, size - done, kQuietly);
    if (count >= 0) {
      done += static_cast<size_t>(count);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      break;
    } else if (errno != EINTR) {
      return -1;
    }
  }
  return static_cast<long>(done);
}

}  // namespace hearth
