// A frame to one rank and one from it, sent and received without blocking.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace hearth {

inline constexpr size_t kHeaderBytes = 16;

class Transfer {
 public:
  // out, in: the bytes behind the headers. `in` may be smaller than in_size: a window that is
  // written again from its start, so the caller must have used what `received` counts. Throws
  // std::logic_error for a window of 0 bytes.
  Transfer(size_t rank, int socket, uint32_t step, uint32_t index, const uint8_t* out,
           size_t out_size, uint8_t* in, size_t in_size, size_t window);

  size_t rank() const { return rank_; }
  int socket() const { return socket_; }

  // Limits sending to the first `bytes` of `out`; at first all may be sent.
  void offer(size_t bytes) { offered_ = bytes; }

  bool sending() const { return sent_ < kHeaderBytes + out_size_; }
  bool receiving() const { return received_ < kHeaderBytes + in_size_; }
  bool done() const { return !sending() && !receiving(); }
  bool can_send() const { return sent_ < kHeaderBytes + offered_; }
  // Bytes behind the headers.
  size_t sent() const { return sent_ - std::min(sent_, kHeaderBytes); }
  size_t received() const { return received_ - std::min(received_, kHeaderBytes); }

  // One system call each; true if bytes moved. Throw LaneError.
  bool send();
  bool receive();

 private:
  void check() const;

  size_t rank_;
  int socket_;
  uint32_t out_header_[4], in_header_[4];
  const uint8_t* out_;
  size_t out_size_, offered_, sent_ = 0;
  uint8_t* in_;
  size_t in_size_, window_, received_ = 0;
};

}  // namespace hearth
