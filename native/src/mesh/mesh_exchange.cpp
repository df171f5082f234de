// Frames between this rank and the others: sending, receiving, comparing headers, waiting.
#include "mesh/mesh_exchange.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>

#include "hearth/mesh.h"

namespace hearth {
namespace {

constexpr uint32_t kMagic = 0x48525448;  // "HTRH"
// Bytes of one call. Sending and receiving alternate, so that neither rank's socket buffer is full
// while the other's is empty. Pieces fit the second-level cache and make the cost of a call small.
constexpr size_t kMoveAtOnce = 256 << 10;
// After a wait longer than this, spinning was useless at any length.
constexpr auto kLongWait = std::chrono::microseconds(200);
// The longest time until an abort is seen.
constexpr int kPollMilliseconds = 100;

// Bytes that a system call moved; 0 when it would block.
size_t moved(ssize_t result, size_t rank) {
  if (result >= 0) return static_cast<size_t>(result);
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return 0;
  throw LaneError(rank, std::string("is lost: ") + std::strerror(errno));
}

// A message for sendmsg or recvmsg: the rest of a header, and up to `size` bytes behind it.
struct FrameMessage {
  FrameMessage(void* header, size_t past, const uint8_t* body, size_t size) {
    auto* start = static_cast<uint8_t*>(header);
    if (past < kHeaderBytes) pieces[message.msg_iovlen++] = {start + past, kHeaderBytes - past};
    if (size > 0) pieces[message.msg_iovlen++] = {const_cast<uint8_t*>(body), size};
    message.msg_iov = pieces;
  }
  iovec pieces[2];
  msghdr message{};
};

}  // namespace

Transfer::Transfer(size_t rank, int socket, uint32_t step, uint32_t index, const uint8_t* out,
                   size_t out_size, uint8_t* in, size_t in_size, size_t window)
    : rank_(rank),
      socket_(socket),
      out_header_{kMagic, step, index, static_cast<uint32_t>(out_size)},
      out_(out),
      out_size_(out_size),
      offered_(out_size),
      in_(in),
      in_size_(in_size),
      window_(window) {
  if (window == 0) throw std::logic_error("mesh: no room to receive a frame in");
}

bool Transfer::send() {
  if (!can_send()) return false;
  const size_t past = sent();
  FrameMessage frame(out_header_, sent_, out_ + past, std::min(offered_ - past, kMoveAtOnce));
  const size_t size = moved(sendmsg(socket_, &frame.message, MSG_DONTWAIT | MSG_NOSIGNAL), rank_);
  sent_ += size;
  return size > 0;
}

bool Transfer::receive() {
  if (!receiving()) return false;
  // The bytes behind a header are read with it: it is checked before they are used, and they have
  // their place whatever it says.
  const bool heading = received_ < kHeaderBytes;
  const size_t past = received(), at = past % window_;
  const size_t most = std::min({in_size_ - past, window_ - at, kMoveAtOnce});
  FrameMessage frame(in_header_, received_, in_ + at, most);
  const ssize_t result = recvmsg(socket_, &frame.message, MSG_DONTWAIT);
  if (result == 0) throw LaneError(rank_, "is lost: it closed its connection");
  const size_t size = moved(result, rank_);
  received_ += size;
  if (heading && received_ >= kHeaderBytes) check();
  return size > 0;
}

void Transfer::check() const {
  const uint32_t due[4] = {kMagic, out_header_[1], out_header_[2], static_cast<uint32_t>(in_size_)};
  if (std::memcmp(in_header_, due, kHeaderBytes) == 0) return;
  const auto sync = [](const uint32_t* header) {
    return std::to_string(header[3]) + " bytes for sync " + std::to_string(header[2]) +
           " of step " + std::to_string(header[1]);
  };
  throw LaneError(rank_, "is out of step: it sent " + sync(in_header_) + ", due are " + sync(due));
}

Transfer MeshLane::transfer(size_t rank, Outgoing out, Incoming in, size_t window) {
  sent_ += kHeaderBytes + out.second;
  received_ += kHeaderBytes + in.second;
  return {rank,       sockets_.all[rank], step_,     index_, out.first,
          out.second, in.first,           in.second, window};
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
  if (aborted_.load()) throw LaneError(config_.rank, "was told to give the step up");
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
  std::vector<pollfd> waiting;
  for (auto each = slow; each != transfers.end(); ++each) {
    if (each->done()) continue;
    const int events = (each->can_send() ? POLLOUT : 0) | (each->receiving() ? POLLIN : 0);
    waiting.push_back({each->socket(), static_cast<short>(events), 0});
    if (all_sent) break;
  }
  const double milliseconds = std::min<double>(kPollMilliseconds, left * 1000.0 + 1.0);
  poll(waiting.data(), waiting.size(), static_cast<int>(milliseconds));
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
