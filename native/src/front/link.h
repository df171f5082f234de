// One connection of the front: the peer's socket, the server's, and what waits between them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "front/frames.h"
#include "platform/sockets.h"
#include "platform/splice.h"

namespace hearth {

using FrontClock = std::chrono::steady_clock;

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
  FrontClock::time_point answered;  // when the server first sent bytes, if it `is_answered`
  bool is_answered = false;
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

// Writes what a non-blocking socket takes: the count (0 if it would block), -1 if it failed.
long write_some(int fd, const uint8_t* data, size_t size);

}  // namespace hearth
