// The frames of an HTTP/2 connection in plaintext, as far as the front reads them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hearth {

// Finds the acknowledgement of SETTINGS among the bytes of a client (RFC 9113, 4.1 and 6.5).
class SettingsAck {
 public:
  // True once an acknowledgement was among the bytes so far.
  bool feed(const uint8_t* data, size_t size) {
    while (size > 0 && !found_) {
      if (skip_ > 0) {
        const size_t part = skip_ < size ? skip_ : size;
        skip_ -= part, data += part, size -= part;
        continue;
      }
      header_[filled_++] = *data++;
      --size;
      if (filled_ < sizeof header_) continue;
      filled_ = 0;
      skip_ =
          static_cast<size_t>(header_[0]) << 16 | static_cast<size_t>(header_[1]) << 8 | header_[2];
      constexpr uint8_t kSettings = 4, kAck = 1;
      found_ = header_[3] == kSettings && (header_[4] & kAck) != 0 && skip_ == 0;
    }
    return found_;
  }

 private:
  static constexpr size_t kPreface = 24;
  uint8_t header_[9] = {};
  size_t filled_ = 0;
  size_t skip_ = kPreface;
  bool found_ = false;
};

}  // namespace hearth
