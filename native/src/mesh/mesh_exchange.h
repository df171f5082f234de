// A frame to one rank and one from it, sent and received without blocking.
//
// On the wire a frame is a header (16 bytes, in plain text), then the payload in records: at most
// kRecordBytes of it each, protected, and a tag behind. The first record's tag covers the header.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "hearth/mesh_cipher.h"

namespace hearth {

inline constexpr size_t kHeaderBytes = 16;
// Small enough that a large payload is protected, sent, received and opened at once, and stays in
// the second-level cache meanwhile.
inline constexpr size_t kRecordBytes = 64 << 10;

// Bytes of a frame on the wire.
constexpr size_t frame_bytes(size_t payload) {
  const size_t records = std::max<size_t>(1, (payload + kRecordBytes - 1) / kRecordBytes);
  return kHeaderBytes + payload + records * RecordCipher::kTagBytes;
}

// The connection to one rank: how its records are protected, and the record on its way out and in.
struct MeshLink {
  MeshLink(MeshCipher cipher, const MeshKeys& keys)
      : sealer(make_record_cipher(cipher, RecordWay::seal, keys.send)),
        opener(make_record_cipher(cipher, RecordWay::open, keys.receive)) {}
  std::unique_ptr<RecordCipher> sealer, opener;
  std::vector<uint8_t> out, in;
};

// Frames of a transfer: one each way, or one only.
enum class TransferWay : uint8_t { both, out, in };

class Transfer {
 public:
  // out, in: the payloads. `in` may be smaller than in_size: a window of whole records that is
  // written again from its start, so the caller must have used what `received` counts. Throws
  // std::logic_error for another window. Of the way that has no frame, the payload is empty.
  Transfer(size_t rank, int socket, MeshLink& link, uint32_t step, uint32_t index,
           const uint8_t* out, size_t out_size, uint8_t* in, size_t in_size, size_t window,
           TransferWay way = TransferWay::both);

  size_t rank() const { return rank_; }
  int socket() const { return socket_; }

  // Limits sending to the first `bytes` of `out`, in whole records; at first all may be sent.
  void offer(size_t bytes) { offered_ = bytes; }

  bool sending() const { return !out_started_ || sealed_ < out_size_ || out_at_ < out_end_; }
  bool receiving() const { return !in_started_ || received_ < in_size_; }
  bool done() const { return !sending() && !receiving(); }
  bool can_send() const { return out_at_ < out_end_ || can_seal(); }
  // Bytes of the payloads: those that are sent or on their way, which may change; and those that
  // have been received and checked.
  size_t sent() const { return sealed_; }
  size_t received() const { return received_; }

  // At most one system call each; true if bytes moved. Throw LaneError.
  bool send();
  bool receive();

 private:
  // Payload bytes of the record that begins at `at`.
  static size_t record(size_t at, size_t size) { return std::min(size - at, kRecordBytes); }
  bool can_seal() const {
    return (!out_started_ || sealed_ < out_size_) &&
           offered_ - sealed_ >= record(sealed_, out_size_);
  }
  void seal();
  void open();
  void check_header() const;

  size_t rank_;
  int socket_;
  MeshLink& link_;
  uint32_t out_header_[4], due_[4];  // due: the header to be received
  const uint8_t* out_;
  // Of `out`: its size, what may be sent, what was sealed. Of the sealed record: sent, size.
  size_t out_size_, offered_, sealed_ = 0, out_at_ = 0, out_end_ = 0;
  uint8_t* in_;
  // Of `in`: its size, the window's, what was opened. Of the record that arrives: received.
  size_t in_size_, window_, received_ = 0, in_at_ = 0;
  bool out_started_, in_started_;
};

}  // namespace hearth
