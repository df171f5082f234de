#include "hearth/mesh.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "hearth/cpu.h"
#include "hearth/quant.h"
#include "mesh/mesh_exchange.h"

namespace hearth {
namespace {

bool is_loopback(int socket) {
  sockaddr_storage peer{};
  socklen_t size = sizeof peer;
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &size) != 0) return false;
  if (peer.ss_family == AF_INET) {
    const auto& address = reinterpret_cast<const sockaddr_in&>(peer).sin_addr;
    return ntohl(address.s_addr) >> 24 == IN_LOOPBACKNET;
  }
  if (peer.ss_family != AF_INET6) return false;
  const auto& address = reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr;
  return IN6_IS_ADDR_LOOPBACK(&address) ||
         (IN6_IS_ADDR_V4MAPPED(&address) && address.s6_addr[12] == IN_LOOPBACKNET);
}

void settle(int socket) {
  const int on = 1;
  // A pair of Unix sockets, in tests, has no delay to turn off.
  if (setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 && errno != EOPNOTSUPP &&
      errno != ENOPROTOOPT)
    throw std::system_error(errno, std::generic_category(), "mesh: TCP_NODELAY");
#ifdef TCP_CONGESTION
  // On loopback there is nothing to be congested: what spaces out packets (bbr) only makes large
  // sums take twice as long. Every Linux has reno; where it is not to be had nothing is lost.
  constexpr char kPlain[] = "reno";
  if (is_loopback(socket))
    setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, kPlain, sizeof kPlain - 1);
#endif
}

}  // namespace

MeshLane::MeshLane(MeshConfig config)
    : config_(std::move(config)),
      sockets_(config_.sockets),
      kernels_(kernels_in_use()),
      patience_(config_.deadline_seconds) {
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
    if (r != config_.rank) settle(sockets_.all[r]);
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
  const bool whole = wire_bytes(numbers) <= config_.direct_bytes || numbers % kBlock != 0 ||
                     numbers / kBlock < ranks();
  if (ranks() == 2 && config_.wire == WireType::f32) {
    whole ? pair_direct(x, numbers) : pair_scattered(x, numbers);
  } else {
    whole ? direct(x, numbers) : scattered(x, numbers);
  }
  ++index_;
}

void MeshLane::direct(float* x, size_t numbers) {
  const size_t size = wire_bytes(numbers);
  auto& own = outgoing_[config_.rank];
  own.resize(size);
  encode(x, numbers, own.data());
  std::vector<Outgoing> out(ranks(), {own.data(), size});
  std::vector<Incoming> in(ranks());
  for (size_t r = 0; r < ranks(); ++r) {
    if (r == config_.rank) continue;
    incoming_[r].resize(size);
    in[r] = {incoming_[r].data(), size};
  }
  exchange(out, in);
  for (size_t r = 0; r < ranks(); ++r)
    decode(r == config_.rank ? own.data() : incoming_[r].data(), numbers, x, r > 0);
  // As scattered sums are, so that no number depends on which way it went. (Between two, none do.)
  if (ranks() > 2 && config_.wire != WireType::f32) {
    encode(x, numbers, own.data());
    decode(own.data(), numbers, x, false);
  }
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
  std::vector<Outgoing> out(ranks());
  std::vector<Incoming> in(ranks());
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

}  // namespace hearth
