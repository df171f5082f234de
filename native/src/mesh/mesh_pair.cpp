// Two ranks' all-reduce in f32, as one thread does it best: parts are sent from and received to
// where the numbers lie, and added while they are in the cache and the next ones on their way. Of
// two numbers the order does not matter, so that both ranks have the same bits.
#include <algorithm>
#include <array>

#include "hearth/mesh.h"
#include "mesh/mesh_exchange.h"

namespace hearth {
namespace {

// Where the other's part is received before it is added: stays in the second-level cache.
constexpr size_t kWindowBytes = 256 << 10;

}  // namespace

void MeshLane::pair_direct(float* x, size_t numbers) {
  const size_t size = numbers * 4, peer = 1 - config_.rank;
  auto& part = incoming_[peer];
  part.resize(size);
  std::array<Transfer, 1> whole = {
      transfer(peer, {reinterpret_cast<const uint8_t*>(x), size}, {part.data(), size}, size)};
  Wait wait = begin_wait();
  size_t added = 0;
  while (!whole[0].done()) {
    const bool sent = whole[0].send(), received = whole[0].receive();
    // Only what has been sent may be changed.
    const size_t ready = std::min(whole[0].sent(), whole[0].received()) / 4;
    kernels_.add(x + added, reinterpret_cast<const float*>(part.data()) + added, ready - added);
    added = ready;
    sent || received ? note_move(wait) : wait_to_move(wait, whole);
  }
  adapt(wait);
}

// Each adds up one half and sends the sums behind its part of the other half, as they come to be:
// half the adding of the direct way, and one pass less over memory.
void MeshLane::pair_scattered(float* x, size_t numbers) {
  const size_t peer = 1 - config_.rank;
  float* own = x + segment(numbers, config_.rank);
  float* theirs = x + segment(numbers, peer);
  const size_t own_size = (segment(numbers, config_.rank + 1) - segment(numbers, config_.rank)) * 4;
  const size_t their_size = numbers * 4 - own_size;
  auto& window = incoming_[peer];
  window.resize(kWindowBytes);
  auto* own_bytes = reinterpret_cast<uint8_t*>(own);
  auto* their_bytes = reinterpret_cast<uint8_t*>(theirs);
  // Their sums come to where our part of them is sent from: they are made of it, so it is gone.
  std::array<Transfer, 2> both = {
      transfer(peer, {their_bytes, their_size}, {window.data(), own_size}, kWindowBytes),
      transfer(peer, {own_bytes, own_size}, {their_bytes, their_size}, their_size)};
  auto& [parts, sums] = both;
  sums.offer(0);
  Wait wait = begin_wait();
  size_t added = 0;
  while (!parts.done() || !sums.done()) {
    bool moved = parts.sending() ? parts.send() : sums.send();
    if (parts.receiving()) {
      moved = parts.receive() || moved;
      const size_t ready = parts.received() / 4;
      kernels_.add(own + added,
                   reinterpret_cast<const float*>(window.data() + added * 4 % kWindowBytes),
                   ready - added);
      added = ready;
      sums.offer(added * 4);
    } else {
      moved = sums.receive() || moved;
    }
    moved ? note_move(wait) : wait_to_move(wait, both);
  }
  adapt(wait);
}

}  // namespace hearth
