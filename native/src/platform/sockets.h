// TCP sockets as the core uses them, on POSIX systems and on Windows. A socket is an int
// everywhere: of Windows' handles only the low 32 bits count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#ifndef _WIN32
#include <poll.h>
#endif

namespace hearth {

// Readies the system's sockets, which Windows wants once in a process. What makes or prepares
// sockets here calls it too.
void start_sockets();

void close_socket(int fd);

// A socket, or another descriptor, that is closed with its owner.
class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  ~Socket() { reset(); }
  Socket(Socket&& other) noexcept : fd_(other.release()) {}
  Socket& operator=(Socket&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  void reset(int fd = -1) {
    if (fd_ >= 0) close_socket(fd_);
    fd_ = fd;
  }

 private:
  int fd_;
};

void shut_down_socket(int fd);  // both ways: calls that wait on it return
void shut_down_socket_for_sending(int fd);

// Makes a socket non-blocking, closed in child processes, and silent (no SIGPIPE). False if it
// failed, see socket_error.
bool prepare_socket(int fd);
// Sends small packets at once. False if it failed for a socket that could (pairs cannot).
bool set_no_delay(int fd);
// Turns the pacing of packets off for a socket whose peer is this machine.
void set_loopback_congestion(int fd);

// Move bytes without waiting: the count, 0 at the stream's end, or one of the two below. On Windows
// the socket must be prepared.
inline constexpr long kWouldBlock = -1, kSocketFailed = -2;
long receive_now(int fd, uint8_t* data, size_t size);
long send_now(int fd, const uint8_t* data, size_t size);

// Two ends of a connection within this process, prepared. Throws std::system_error.
std::pair<Socket, Socket> socket_pair();

// A connection that waited at a listener; `socket` is closed where there was none.
struct Accepted {
  Socket socket;
  std::string host;  // IPv4 in IPv6 as IPv4
  uint16_t port = 0;
  bool exhausted = false;  // there was one, but no descriptor or memory is left
};
Accepted accept_connection(int listener);

// Connects to a port of 127.0.0.1 within a second, and prepares the socket, which is closed if that
// failed. own_port: this end's.
Socket connect_loopback(uint16_t port, uint16_t& own_port);

// The last failed call of this thread, in the system's words; throws it.
std::string socket_error();
[[noreturn]] void throw_socket_error(const std::string& what);

// Waiting for several sockets, as poll(2).
#ifdef _WIN32
struct PollEntry {
  int fd;
  short events, revents;
};
inline constexpr short kReadable = 0x0300, kWritable = 0x0010, kBroken = 0x0007;
#else
using PollEntry = pollfd;
inline constexpr short kReadable = POLLIN, kWritable = POLLOUT, kBroken = POLLERR | POLLHUP;
#endif
// Entries with a negative fd are left out. The count of those with events; negative if it failed.
int poll_sockets(std::span<PollEntry> entries, int milliseconds);

}  // namespace hearth
