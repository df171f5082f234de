// Frames between this rank and the others: sending, receiving, comparing headers, waiting.
#include "mesh/mesh_exchange.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "hearth/mesh.h"
#include "platform/sockets.h"

namespace hearth {
namespace {

constexpr uint32_t kMagic = 0x48525448;  // "HTRH"
// After a wait longer than this, spinning was useless at any length.
constexpr auto kLongWait = std::chrono::microseconds(200);
// The longest time until an abort is seen.
constexpr int kPollMilliseconds = 100;

// Bytes that a call moved; 0 when it would block.
size_t moved(long count, size_t rank) {
  if (count >= 0) return static_cast<size_t>(count);
  if (count == kWouldBlock) return 0;
  throw LaneError(rank, "is lost: " + socket_error());
}

}  // namespace

Transfer::Transfer(size_t rank, int socket, MeshLink& link, uint32_t step, uint32_t index,
                   const uint8_t* out, size_t out_size, uint8_t* in, size_t in_size, size_t window,
                   TransferWay way)
    : rank_(rank),
      socket_(socket),
      link_(link),
      out_header_{kMagic, step, index, static_cast<uint32_t>(out_size)},
      due_{kMagic, step, index, static_cast<uint32_t>(in_size)},
      out_(out),
      out_size_(out_size),
      offered_(out_size),
      in_(in),
      in_size_(in_size),
      window_(window),
      out_started_(way == TransferWay::in),
      in_started_(way == TransferWay::out) {
  if (window == 0 || (window < in_size && window % kRecordBytes != 0))
    throw std::logic_error("mesh: the room to receive a frame in is not of whole records");
  constexpr size_t kLargest = kHeaderBytes + kRecordBytes + RecordCipher::kTagBytes;
  for (auto* staged : {&link.out, &link.in}) {
    if (staged->size() < kLargest) staged->resize(kLargest);
  }
}

void Transfer::seal() {
  const size_t head = out_started_ ? 0 : kHeaderBytes, size = record(sealed_, out_size_);
  std::memcpy(link_.out.data(), out_header_, head);
  link_.sealer->seal(link_.out.data(), head, out_ + sealed_, size, link_.out.data() + head);
  out_started_ = true;
  sealed_ += size;
  out_at_ = 0;
  out_end_ = head + size + RecordCipher::kTagBytes;
}

bool Transfer::send() {
  if (!can_send()) return false;
  if (out_at_ == out_end_) seal();
  const size_t size =
      moved(send_now(socket_, link_.out.data() + out_at_, out_end_ - out_at_), rank_);
  out_at_ += size;
  return size > 0;
}

bool Transfer::receive() {
  if (!receiving()) return false;
  const size_t head = in_started_ ? 0 : kHeaderBytes;
  const size_t end = head + record(received_, in_size_) + RecordCipher::kTagBytes;
  const long result = receive_now(socket_, link_.in.data() + in_at_, end - in_at_);
  if (result == 0) throw LaneError(rank_, "is lost: it closed its connection");
  const size_t size = moved(result, rank_);
  // Compared before the payload is here: two ranks that are out of step do not wait for more.
  const bool heading = in_at_ < head;
  in_at_ += size;
  if (heading && in_at_ >= head) check_header();
  if (in_at_ == end) open();
  return size > 0;
}

void Transfer::open() {
  const size_t head = in_started_ ? 0 : kHeaderBytes, size = record(received_, in_size_);
  if (!link_.opener->open(link_.in.data(), head, link_.in.data() + head, size,
                          in_ + received_ % window_))
    throw LaneError(rank_, "sent bytes for sync " + std::to_string(due_[2]) + " of step " +
                               std::to_string(due_[1]) +
                               " that arrived changed: the network damages or replaces data");
  in_started_ = true;
  received_ += size;
  in_at_ = 0;
}

void Transfer::check_header() const {
  uint32_t header[4];
  std::memcpy(header, link_.in.data(), sizeof header);
  if (std::memcmp(header, due_, kHeaderBytes) == 0) return;
  const auto sync = [](const uint32_t* of) {
    return std::to_string(of[3]) + " bytes for sync " + std::to_string(of[2]) + " of step " +
           std::to_string(of[1]);
  };
  throw LaneError(rank_, "is out of step: it sent " + sync(header) + ", due are " + sync(due_));
}

Transfer MeshLane::transfer(size_t rank, Outgoing out, Incoming in, size_t window) {
  sent_ += frame_bytes(out.second);
  received_ += frame_bytes(in.second);
  return {named(rank), sockets_.all[rank], *links_[rank], step_,     index_,
          out.first,   out.second,         in.first,      in.second, window};
}

void MeshLane::exchange(const std::vector<Outgoing>& out, const std::vector<Incoming>& in) {
  std::vector<Transfer> transfers;
  transfers.reserve(ranks() - 1);
  for (size_t r = 0; r < ranks(); ++r) {
    if (r != config_.rank) transfers.push_back(transfer(r, out[r], in[r], in[r].second));
  }
  Wait wait = begin_wait();
  while (true) {
    bool moved = false, done = true;
    for (Transfer& each : transfers) {
      moved = each.send() || moved;
      moved = each.receive() || moved;
      done = done && each.done();
    }
    if (moved) note_move(wait);
    if (done) return adapt(wait);
    if (!moved) wait_to_move(wait, transfers);
  }
}

MeshLane::Wait MeshLane::begin_wait() {
  const auto now = Clock::now();
  return {now, now, {}};
}

void MeshLane::note_move(Wait& wait) {
  const auto now = Clock::now();
  wait.longest = std::max(wait.longest, now - wait.moved_at);
  wait.moved_at = now;
}

void MeshLane::wait_to_move(const Wait& wait, std::span<const Transfer> transfers) {
  if (aborted_.load()) throw LaneError(named(config_.rank), "was told to give the step up");
  const auto now = Clock::now();
  const double left = patience_ - std::chrono::duration<double>(now - wait.start).count();
  // (A rank that sends a byte now and then keeps us spinning, but not beyond the deadline.)
  if (left > 0.0 && now - wait.moved_at < spin_) return;
  const auto slow = std::find_if(transfers.begin(), transfers.end(),
                                 [](const Transfer& each) { return !each.done(); });
  if (left <= 0.0)
    throw LaneError(slow->rank(), "did not answer within " + std::to_string(patience_) + " s");
  // Once all is sent, poll one rank at a time. Waking for each of them would take cores from ranks
  // on the same machine that still compute. The others are checked when this one has arrived, or
  // after kPollMilliseconds.
  const bool all_sent = std::none_of(transfers.begin(), transfers.end(),
                                     [](const Transfer& each) { return each.can_send(); });
  std::vector<PollEntry> waiting;
  for (auto each = slow; each != transfers.end(); ++each) {
    if (each->done()) continue;
    const int events = (each->can_send() ? kWritable : 0) | (each->receiving() ? kReadable : 0);
    waiting.push_back({each->socket(), static_cast<short>(events), 0});
    if (all_sent) break;
  }
  const double milliseconds = std::min<double>(kPollMilliseconds, left * 1000.0 + 1.0);
  poll_sockets(waiting, static_cast<int>(milliseconds));
}

// Spinning helps when the other ranks are nearly done. When they are not, as with more ranks than
// cores, it takes the core that one of them needs.
void MeshLane::adapt(const Wait& wait) {
  if (wait.longest > kLongWait) {
    spin_ /= 2;
  } else {
    spin_ = std::min<Clock::duration>(kMeshSpin, spin_ * 2 + std::chrono::microseconds(1));
  }
}

}  // namespace hearth
