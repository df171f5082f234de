#include "hearth/mesh.h"

#include <cstring>

#include "hearth/cpu.h"
#include "hearth/quant.h"
#include "mesh/mesh_exchange.h"
#include "mesh/settle.h"
#include "platform/sockets.h"

namespace hearth {

MeshLane::MeshLane(MeshConfig config)
    : config_(std::move(config)),
      wire_(config_.wire),
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
  if (config_.keys.size() != count)
    throw std::invalid_argument("mesh: keys of " + std::to_string(config_.keys.size()) + " of " +
                                std::to_string(count) + " ranks");
  links_.resize(count);
  for (size_t r = 0; r < count; ++r) {
    if (r == config_.rank) continue;
    if (config_.keys[r].send == config_.keys[r].receive)  // a frame could be sent back
      throw std::invalid_argument("mesh: rank " + std::to_string(r) +
                                  " has one key for both directions");
    settle_mesh_socket(sockets_.all[r]);
    links_[r] = std::make_unique<MeshLink>(config_.cipher, config_.keys[r]);
  }
  outgoing_.resize(count);
  incoming_.resize(count);
}

MeshLane::~MeshLane() = default;

void MeshLane::close() {
  abort();
  sockets_.close();
}

void MeshLane::begin(uint32_t step) {
  step_ = step;
  index_ = 0;
  sent_ = received_ = 0;
}

size_t MeshLane::wire_bytes(size_t elements) const {
  switch (wire_) {
    case WireType::f32:
      return elements * 4;
    case WireType::f16:
      return elements * 2;
    case WireType::q80:
      return elements + elements / kBlock * 4;
  }
  return 0;
}

// q80 on the wire: all f32 scales, then all int8, as the kernel that quantizes activations has
// them.
void MeshLane::encode(const float* x, size_t elements, uint8_t* out) {
  switch (wire_) {
    case WireType::f32:
      std::memcpy(out, x, elements * 4);
      return;
    case WireType::f16:
      kernels_.to_f16(x, elements, reinterpret_cast<uint16_t*>(out));
      return;
    case WireType::q80: {
      const size_t blocks = elements / kBlock;
      if (sums_.size() < blocks) sums_.resize(blocks);
      kernels_.quantize(x, elements, reinterpret_cast<int8_t*>(out + blocks * 4),
                        reinterpret_cast<float*>(out), sums_.data());
      return;
    }
  }
}

void MeshLane::decode(const uint8_t* in, size_t elements, float* x, bool add) {
  switch (wire_) {
    case WireType::f32:
      if (add) {
        kernels_.add(x, reinterpret_cast<const float*>(in), elements);
      } else if (reinterpret_cast<const uint8_t*>(x) != in) {
        std::memcpy(x, in, elements * 4);
      }
      return;
    case WireType::f16:
      kernels_.from_f16(reinterpret_cast<const uint16_t*>(in), elements, x, add);
      return;
    case WireType::q80: {
      const size_t blocks = elements / kBlock;
      kernels_.from_q80(reinterpret_cast<const int8_t*>(in + blocks * 4),
                        reinterpret_cast<const float*>(in), elements, x, add);
      return;
    }
  }
}

size_t MeshLane::segment(size_t elements, size_t rank) const {
  return elements / kBlock * rank / ranks() * kBlock;
}

void MeshLane::all_reduce(float* x, size_t rows, size_t columns, bool exact) {
  const size_t elements = rows * columns;
  wire_ = exact ? WireType::f32 : config_.wire;
  if (wire_ == WireType::q80 && elements % kBlock != 0)
    throw std::invalid_argument("mesh: q80 needs whole blocks of 32");
  if (elements == 0) throw std::invalid_argument("mesh: a sync of no elements");
  if (elements > (size_t{1} << 29)) throw std::invalid_argument("mesh: a sync is too large");
  sockets_.use(named(config_.rank), [&] { reduce(x, elements); });
}

LinkCosts MeshLane::measure(double seconds) {
  LinkCosts costs{};
  wire_ = config_.wire;
  sockets_.use(named(config_.rank), [&] { costs = measure_links(seconds); });
  return costs;
}

void MeshLane::reduce(float* x, size_t elements) {
  // With fewer blocks than ranks, some segments would be empty.
  const bool whole = wire_bytes(elements) <= config_.direct_bytes || elements % kBlock != 0 ||
                     elements / kBlock < ranks();
  if (ranks() == 2 && wire_ == WireType::f32) {
    whole ? pair_direct(x, elements) : pair_scattered(x, elements);
  } else {
    whole ? direct(x, elements) : scattered(x, elements);
  }
  ++index_;
}

void MeshLane::direct(float* x, size_t elements) {
  const size_t size = wire_bytes(elements);
  auto& own = outgoing_[config_.rank];
  own.resize(size);
  encode(x, elements, own.data());
  std::vector<Outgoing> out(ranks(), {own.data(), size});
  std::vector<Incoming> in(ranks());
  for (size_t r = 0; r < ranks(); ++r) {
    if (r == config_.rank) continue;
    incoming_[r].resize(size);
    in[r] = {incoming_[r].data(), size};
  }
  exchange(out, in);
  for (size_t r = 0; r < ranks(); ++r)
    decode(r == config_.rank ? own.data() : incoming_[r].data(), elements, x, r > 0);
  // Round the sum as the scattered way does, so that no bit depends on the way. (Between two ranks
  // that round, the way is always direct.)
  if (ranks() > 2 && wire_ != WireType::f32) {
    encode(x, elements, own.data());
    decode(own.data(), elements, x, false);
  }
}

void MeshLane::scattered(float* x, size_t elements) {
  const bool exact = wire_ == WireType::f32;
  const auto size_of = [&](size_t rank) {
    return segment(elements, rank + 1) - segment(elements, rank);
  };
  const auto bytes_of = [&](size_t rank) {
    return reinterpret_cast<uint8_t*>(x + segment(elements, rank));
  };
  const size_t mine = size_of(config_.rank);
  std::vector<Outgoing> out(ranks());
  std::vector<Incoming> in(ranks());
  for (size_t r = 0; r < ranks(); ++r) {
    const size_t size = wire_bytes(size_of(r));
    if (exact && r != config_.rank) {
      out[r] = {bytes_of(r), size};  // sent from where it is
    } else {
      outgoing_[r].resize(size);
      encode(x + segment(elements, r), size_of(r), outgoing_[r].data());
      out[r] = {outgoing_[r].data(), size};
    }
    incoming_[r].resize(wire_bytes(mine));
    in[r] = {incoming_[r].data(), incoming_[r].size()};
  }
  exchange(out, in);
  float* own = x + segment(elements, config_.rank);
  for (size_t r = 0; r < ranks(); ++r) {
    const auto& part = r == config_.rank ? outgoing_[r] : incoming_[r];
    decode(part.data(), mine, own, r > 0);
  }

  auto& sum = outgoing_[config_.rank];
  encode(own, mine, sum.data());
  for (size_t r = 0; r < ranks(); ++r) {
    out[r] = {sum.data(), sum.size()};
    incoming_[r].resize(exact ? 0 : wire_bytes(size_of(r)));
    in[r] = {exact ? bytes_of(r) : incoming_[r].data(), wire_bytes(size_of(r))};
  }
  exchange(out, in);
  if (exact) return;  // received in place
  for (size_t r = 0; r < ranks(); ++r) {
    const auto& part = r == config_.rank ? sum : incoming_[r];
    decode(part.data(), size_of(r), x + segment(elements, r), false);
  }
}

}  // namespace hearth
