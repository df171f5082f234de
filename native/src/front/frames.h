// The first bytes of a connection, as far as the front reads them: TLS's first record, and the
// frames of HTTP/2 in plaintext.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hearth {

// Counts the bytes of a peer's first TLS record, its ClientHello (RFC 8446, 5.1).
class FirstRecord {
 public:
  // True once the record is whole: what comes next is the server's answer.
  bool feed(const uint8_t* data, size_t size) {
    for (; size > 0 && filled_ < kHeader; --size) header_[filled_++] = *data++;
    body_ += size;
    if (filled_ < kHeader) return false;
    return body_ >= (static_cast<size_t>(header_[3]) << 8 | header_[4]);
  }

 private:
  static constexpr size_t kHeader = 5;  // type, version, length
  uint8_t header_[kHeader] = {};
  size_t filled_ = 0;
  size_t body_ = 0;
};

// Finds the acknowledgement of SETTINGS among the bytes of a client (RFC 9113, 4.1 and 6.5).
class SettingsAck {
 public:
  static constexpr size_t kPreface = 24;

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
  uint8_t header_[9] = {};
  size_t filled_ = 0;
  size_t skip_ = kPreface;
  bool found_ = false;
};

}  // namespace hearth
