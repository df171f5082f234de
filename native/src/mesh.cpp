#include "hearth/mesh.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "hearth/cpu.h"
#include "hearth/quant.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kMagic = 0x48525448;  // "HTRH"
constexpr size_t kHeaderBytes = 16;
constexpr size_t kMostRanks = 1024;
// After a wait longer than this spinning was in vain, and would have been at any length.
constexpr auto kLongWait = std::chrono::microseconds(200);
// Numbers: while they are still in the second-level cache.
constexpr size_t kAddAtOnce = 8192;
// How soon an abort is seen.
constexpr int kPollMilliseconds = 100;

void put_header(uint8_t* at, uint32_t step, uint32_t index, size_t bytes) {
  const uint32_t words[4] = {kMagic, step, index, static_cast<uint32_t>(bytes)};
  std::memcpy(at, words, kHeaderBytes);
}

}  // namespace

// One rank's frames of one exchange: what is left to send and to receive.
struct MeshLane::Transfer {
  size_t rank;
  int socket;
  uint8_t out_header[kHeaderBytes], in_header[kHeaderBytes];
  const uint8_t* out;
  size_t out_size, sent = 0;
  uint8_t* in;
  size_t in_size, received = 0;

  bool sending() const { return sent < kHeaderBytes + out_size; }
  bool receiving() const { return received < kHeaderBytes + in_size; }
  bool done() const { return !sending() && !receiving(); }
  // Bytes that are both sent and received.
  size_t ready() const {
    const size_t least = std::min(sent, received);
    return least > kHeaderBytes ? least - kHeaderBytes : 0;
  }

  // What can be done without waiting; true when anything moved.
  bool move(uint32_t step, uint32_t index) {
    bool moved = false;
    while (sending()) {
      iovec parts[2];
      size_t count = 0;
      if (sent < kHeaderBytes) parts[count++] = {out_header + sent, kHeaderBytes - sent};
      const size_t past = sent > kHeaderBytes ? sent - kHeaderBytes : 0;
      if (out_size > past) parts[count++] = {const_cast<uint8_t*>(out) + past, out_size - past};
      msghdr message{};
      message.msg_iov = parts;
      message.msg_iovlen = count;
      const ssize_t size = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) break;
        throw LaneError(rank, std::string("is lost: ") + std::strerror(errno));
      }
      sent += static_cast<size_t>(size);
      moved = true;
    }
    while (receiving()) {
      iovec parts[2];
      size_t count = 0;
      const bool heading = received < kHeaderBytes;
      if (heading) parts[count++] = {in_header + received, kHeaderBytes - received};
      // The bytes behind a header are read with it: it is checked before they are used, and they
      // have their place whatever it says.
      const size_t past = heading ? 0 : received - kHeaderBytes;
      if (in_size > past) parts[count++] = {in + past, in_size - past};
      msghdr message{};
      message.msg_iov = parts;
      message.msg_iovlen = count;
      const ssize_t size = recvmsg(socket, &message, MSG_DONTWAIT);
      if (size < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) break;
        throw LaneError(rank, std::string("is lost: ") + std::strerror(errno));
      }
      if (size == 0) throw LaneError(rank, "is lost: it closed its connection");
      received += static_cast<size_t>(size);
      moved = true;
      if (heading && received >= kHeaderBytes) check(step, index);
    }
    return moved;
  }

  void check(uint32_t step, uint32_t index) const {
    uint32_t words[4];
    std::memcpy(words, in_header, kHeaderBytes);
    const uint32_t due[4] = {kMagic, step, index, static_cast<uint32_t>(in_size)};
    if (std::memcmp(words, due, kHeaderBytes) != 0) {
      throw LaneError(rank, "is out of step: it sent " + std::to_string(words[3]) +
                                " bytes for sync " + std::to_string(words[2]) + " of step " +
                                std::to_string(words[1]) + ", due are " + std::to_string(in_size) +
                                " for sync " + std::to_string(index) + " of step " +
                                std::to_string(step));
    }
  }
};

MeshLane::MeshLane(MeshConfig config)
    : config_(std::move(config)), sockets_(config_.sockets), kernels_(kernels_in_use()) {
  const size_t count = ranks();
  if (count < 2 || count > kMostRanks || config_.rank >= count)
    throw std::invalid_argument("mesh: rank " + std::to_string(config_.rank) + " of " +
                                std::to_string(count) + " ranks");
  if (!(config_.deadline_seconds > 0.0))
    throw std::invalid_argument("mesh: the deadline must be above 0 seconds");
  for (size_t r = 0; r < count; ++r) {
    if ((sockets_.all[r] < 0) != (r == config_.rank))
      throw std::invalid_argument("mesh: every rank but one's own needs a socket");
  }
  for (size_t r = 0; r < count; ++r) {
    if (r == config_.rank) continue;
    const int on = 1;
    // A pair of Unix sockets, in tests, has no delay to turn off.
    if (setsockopt(sockets_.all[r], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 &&
        errno != EOPNOTSUPP && errno != ENOPROTOOPT)
      throw std::system_error(errno, std::generic_category(), "mesh: TCP_NODELAY");
  }
  outgoing_.resize(count);
  incoming_.resize(count);
}

void MeshLane::Sockets::close() {
  closed = true;
  for (int& socket : all) {
    if (socket >= 0) ::close(socket);
    socket = -1;
  }
}

void MeshLane::begin(uint32_t step) {
  step_ = step;
  index_ = 0;
  sent_ = received_ = 0;
}

size_t MeshLane::wire_bytes(size_t numbers) const {
  switch (config_.wire) {
    case WireType::f32:
      return numbers * 4;
    case WireType::f16:
      return numbers * 2;
    case WireType::q80:
      return numbers + numbers / kBlock * 4;
  }
  return 0;
}

// q80 on the wire: all f32 scales, then all int8, as the kernel that quantizes activations has
// them.
void MeshLane::encode(const float* x, size_t numbers, uint8_t* out) {
  switch (config_.wire) {
    case WireType::f32:
      std::memcpy(out, x, numbers * 4);
      return;
    case WireType::f16:
      kernels_.to_f16(x, numbers, reinterpret_cast<uint16_t*>(out));
      return;
    case WireType::q80: {
      const size_t blocks = numbers / kBlock;
      if (sums_.size() < blocks) sums_.resize(blocks);
      kernels_.quantize(x, numbers, reinterpret_cast<int8_t*>(out + blocks * 4),
                        reinterpret_cast<float*>(out), sums_.data());
      return;
    }
  }
}

void MeshLane::decode(const uint8_t* in, size_t numbers, float* x, bool add) {
  switch (config_.wire) {
    case WireType::f32:
      if (add) {
        kernels_.add(x, reinterpret_cast<const float*>(in), numbers);
      } else if (reinterpret_cast<const uint8_t*>(x) != in) {
        std::memcpy(x, in, numbers * 4);
      }
      return;
    case WireType::f16:
      kernels_.from_f16(reinterpret_cast<const uint16_t*>(in), numbers, x, add);
      return;
    case WireType::q80: {
      const size_t blocks = numbers / kBlock;
      kernels_.from_q80(reinterpret_cast<const int8_t*>(in + blocks * 4),
                        reinterpret_cast<const float*>(in), numbers, x, add);
      return;
    }
  }
}

size_t MeshLane::segment(size_t numbers, size_t rank) const {
  return numbers / kBlock * rank / ranks() * kBlock;
}

void MeshLane::all_reduce(float* x, size_t rows, size_t columns) {
  const size_t numbers = rows * columns;
  if (sockets_.closed) throw std::logic_error("mesh: the lane is closed");
  if (config_.wire == WireType::q80 && numbers % kBlock != 0)
    throw std::invalid_argument("mesh: q80 needs whole blocks of 32");
  if (numbers == 0) throw std::invalid_argument("mesh: a sync of no numbers");
  if (numbers > (size_t{1} << 29)) throw std::invalid_argument("mesh: a sync is too large");
  // Fewer numbers than ranks have blocks for: segments would be empty.
  if (ranks() == 2 && config_.wire == WireType::f32) {
    pairwise(x, numbers);
  } else if (ranks() == 2 || wire_bytes(numbers) <= config_.direct_bytes || numbers % kBlock != 0 ||
             numbers / kBlock < ranks()) {
    direct(x, numbers);
  } else {
    scattered(x, numbers);
  }
  ++index_;
}

void MeshLane::pairwise(float* x, size_t numbers) {
  const size_t size = numbers * 4, peer = 1 - config_.rank;
  auto& part = incoming_[peer];
  part.resize(size);
  std::vector<std::pair<const uint8_t*, size_t>> out(2);
  std::vector<std::pair<uint8_t*, size_t>> in(2);
  out[peer] = {reinterpret_cast<const uint8_t*>(x), size};
  in[peer] = {part.data(), size};
  const auto* theirs = reinterpret_cast<const float*>(part.data());
  size_t added = 0;
  // Only what has been sent may be changed. Of two numbers the order does not matter.
  exchange(out, in, [&](const Transfer& transfer) {
    const size_t ready = transfer.ready() / 4;
    if (ready < numbers && ready - added < kAddAtOnce) return;
    kernels_.add(x + added, theirs + added, ready - added);
    added = ready;
  });
}

void MeshLane::direct(float* x, size_t numbers) {
  const size_t size = wire_bytes(numbers);
  auto& own = outgoing_[config_.rank];
  own.resize(size);
  encode(x, numbers, own.data());
  std::vector<std::pair<const uint8_t*, size_t>> out(ranks(), {own.data(), size});
  std::vector<std::pair<uint8_t*, size_t>> in(ranks());
  for (size_t r = 0; r < ranks(); ++r) {
    if (r == config_.rank) continue;
    incoming_[r].resize(size);
    in[r] = {incoming_[r].data(), size};
  }
  exchange(out, in);
  for (size_t r = 0; r < ranks(); ++r)
    decode(r == config_.rank ? own.data() : incoming_[r].data(), numbers, x, r > 0);
}

void MeshLane::scattered(float* x, size_t numbers) {
  const bool exact = config_.wire == WireType::f32;
  const auto size_of = [&](size_t rank) {
    return segment(numbers, rank + 1) - segment(numbers, rank);
  };
  const auto place = [&](size_t rank) {
    return reinterpret_cast<uint8_t*>(x + segment(numbers, rank));
  };
  const size_t mine = size_of(config_.rank);
  std::vector<std::pair<const uint8_t*, size_t>> out(ranks());
  std::vector<std::pair<uint8_t*, size_t>> in(ranks());
  for (size_t r = 0; r < ranks(); ++r) {
    const size_t size = wire_bytes(size_of(r));
    if (exact && r != config_.rank) {
      out[r] = {place(r), size};  // as it lies
    } else {
      outgoing_[r].resize(size);
      encode(x + segment(numbers, r), size_of(r), outgoing_[r].data());
      out[r] = {outgoing_[r].data(), size};
    }
    incoming_[r].resize(wire_bytes(mine));
    in[r] = {incoming_[r].data(), incoming_[r].size()};
  }
  exchange(out, in);
  float* own = x + segment(numbers, config_.rank);
  for (size_t r = 0; r < ranks(); ++r) {
    const auto& part = r == config_.rank ? outgoing_[r] : incoming_[r];
    decode(part.data(), mine, own, r > 0);
  }

  auto& sum = outgoing_[config_.rank];
  encode(own, mine, sum.data());
  for (size_t r = 0; r < ranks(); ++r) {
    out[r] = {sum.data(), sum.size()};
    incoming_[r].resize(exact ? 0 : wire_bytes(size_of(r)));
    in[r] = {exact ? place(r) : incoming_[r].data(), wire_bytes(size_of(r))};
  }
  exchange(out, in);
  if (exact) return;  // everything came to where it belongs
  for (size_t r = 0; r < ranks(); ++r) {
    const auto& part = r == config_.rank ? sum : incoming_[r];
    decode(part.data(), size_of(r), x + segment(numbers, r), false);
  }
}

void MeshLane::exchange(const std::vector<std::pair<const uint8_t*, size_t>>& out,
                        const std::vector<std::pair<uint8_t*, size_t>>& in,
                        const std::function<void(const Transfer&)>& progress) {
  std::vector<Transfer> transfers;
  transfers.reserve(ranks() - 1);
  for (size_t r = 0; r < ranks(); ++r) {
    if (r == config_.rank) continue;
    Transfer transfer{};
    transfer.rank = r;
    transfer.socket = sockets_.all[r];
    transfer.out = out[r].first;
    transfer.out_size = out[r].second;
    transfer.in = in[r].first;
    transfer.in_size = in[r].second;
    put_header(transfer.out_header, step_, index_, transfer.out_size);
    transfers.push_back(transfer);
    sent_ += kHeaderBytes + transfer.out_size;
    received_ += kHeaderBytes + transfer.in_size;
  }
  const auto start = Clock::now();
  auto moved_at = start;
  auto waited = Clock::duration::zero();
  std::vector<pollfd> waiting;
  while (true) {
    bool moved = false, done = true;
    for (Transfer& transfer : transfers) {
      if (transfer.done()) continue;
      moved = transfer.move(step_, index_) || moved;
      done = done && transfer.done();
    }
    if (moved && progress) progress(transfers.front());
    const auto now = Clock::now();
    if (moved) {
      waited = std::max(waited, now - moved_at);
      moved_at = now;
    }
    if (done) return adapt(waited);
    if (moved) continue;
    if (aborted_.load()) throw LaneError(config_.rank, "was told to give the step up");
    const double left =
        config_.deadline_seconds - std::chrono::duration<double>(now - start).count();
    // (A rank that sends a byte now and then keeps us spinning, but not beyond the deadline.)
    if (left > 0.0 && now - moved_at < spin_) continue;
    const auto slow = std::find_if(transfers.begin(), transfers.end(),
                                   [](const Transfer& transfer) { return !transfer.done(); });
    if (left <= 0.0) {
      throw LaneError(slow->rank,
                      "did not answer within " + std::to_string(config_.deadline_seconds) + " s");
    }
    // When all is sent, one rank is slept for at a time: woken by each of them, ranks that share
    // cores would take these from those that still compute. The others are looked at when this one
    // has come, or after kPollMilliseconds.
    const bool all_sent = std::none_of(transfers.begin(), transfers.end(),
                                       [](const Transfer& transfer) { return transfer.sending(); });
    waiting.clear();
    for (auto transfer = slow; transfer != transfers.end(); ++transfer) {
      if (transfer->done()) continue;
      const int events = (transfer->sending() ? POLLOUT : 0) | (transfer->receiving() ? POLLIN : 0);
      waiting.push_back({transfer->socket, static_cast<short>(events), 0});
      if (all_sent) break;
    }
    const double milliseconds = std::min<double>(kPollMilliseconds, left * 1000.0 + 1.0);
    poll(waiting.data(), waiting.size(), static_cast<int>(milliseconds));
  }
}

// Spinning pays where the others are nearly there. Where they are not, as with more ranks than
// cores, it takes the core that one of them needs.
void MeshLane::adapt(std::chrono::steady_clock::duration waited) {
  if (waited > kLongWait) {
    spin_ /= 2;
  } else {
    spin_ = std::min<Clock::duration>(kMeshSpin, spin_ * 2 + std::chrono::microseconds(1));
  }
}

}  // namespace hearth
