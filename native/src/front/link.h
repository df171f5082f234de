// One connection of the front: the peer's socket, the server's, and what waits between them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "front/frames.h"

namespace hearth {

using FrontClock = std::chrono::steady_clock;

// A descriptor that is closed with its owner.
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
  void reset(int fd = -1);

 private:
  int fd_;
};

// Bytes that could not be written yet.
class Backlog {
 public:
  bool empty() const { return begin_ == bytes_.size(); }
  void add(const uint8_t* data, size_t size) { bytes_.insert(bytes_.end(), data, data + size); }
  // Writes to a non-blocking socket. False if the socket failed.
  bool flush(int fd);
  void clear();

 private:
  std::vector<uint8_t> bytes_;
  size_t begin_ = 0;
};

// A pipe that carries bytes from one socket to another inside the kernel: no copies (splice,
// Linux).
class Conveyor {
 public:
  // False where the system has none, or no descriptors are left.
  bool open();
  bool is_open() const { return out_.open(); }
  bool empty() const { return held_ == 0; }
  // As read_some, into the pipe.
  long take(int from);
  // Writes to a non-blocking socket. False if the socket failed.
  bool flush(int to);
  void clear();

 private:
  Socket out_, in_;
  size_t held_ = 0;
};

enum class Stage {
  silent,    // the peer has not sent its opening yet
  waiting,   // for a place among the strangers
  stranger,  // no authorized call yet
  settling,  // admitted; its SETTINGS may not be acknowledged yet
  settled,   // unbounded
  closing,   // refused or left; the server has not closed its side yet
};

struct Link {
  Socket client, server;
  std::string host;
  uint16_t port = 0;
  uint16_t key = 0;  // our port towards the server
  Stage stage = Stage::silent;
  FrontClock::time_point deadline;  // of its stage, but for `settled`
  FrontClock::time_point stalled;   // since when it may send no more, while `is_stalled`
  bool is_stalled = false;
  bool roomy = false;   // may send settling_bytes
  bool called = false;  // a call has come
  bool admitted = false;
  bool client_ended = false;
  bool server_ended = false;
  bool server_shut = false;
  size_t taken = 0;  // bytes from the peer, but for those of the conveyor
  int refused_calls = 0;
  FirstRecord hello;
  SettingsAck ack;
  bool acked = false;
  Backlog up, down;
  Conveyor conveyor;  // from the peer, once it has sent much
};

// Reads at most `size` bytes from a non-blocking socket: the count, 0 at its end, -1 if it would
// block, -2 if it failed.
long read_some(int fd, uint8_t* data, size_t size);
// Writes what a non-blocking socket takes: the count (0 if it would block), -1 if it failed.
long write_some(int fd, const uint8_t* data, size_t size);

}  // namespace hearth
