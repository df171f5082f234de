// All-reduce between two ranks in f32, as fast as one thread can. Parts are sent and received in
// place. They are added while they are in the cache and the next ones are in flight. A sum of two
// does not depend on their order, so both ranks get the same bits.
#include <algorithm>
#include <array>

#include "hearth/mesh.h"
#include "mesh/mesh_exchange.h"

namespace hearth {
namespace {

// Ring buffer for the other rank's part until it is added: it fits the second-level cache.
constexpr size_t kWindowBytes = 2 * kRecordBytes;

}  // namespace

void MeshLane::pair_direct(float* x, size_t elements) {
  const size_t size = elements * 4, peer = 1 - config_.rank;
  auto& part = incoming_[peer];
  part.resize(size);
  std::array<Transfer, 1> whole = {
      transfer(peer, {reinterpret_cast<const uint8_t*>(x), size}, {part.data(), size}, size)};
  Wait wait = begin_wait();
  size_t added = 0;
  while (!whole[0].done()) {
    const bool sent = whole[0].send(), received = whole[0].receive();
    // Elements not yet sent must not change.
    const size_t ready = std::min(whole[0].sent(), whole[0].received()) / 4;
    kernels_.add(x + added, reinterpret_cast<const float*>(part.data()) + added, ready - added);
    added = ready;
    sent || received ? note_move(wait) : wait_to_move(wait, whole);
  }
  adapt(wait);
}

// Reduce-scatter and all-gather overlapped:
//
//   own half    <- the peer's part of it arrives in the window, and is added in place;
//                  the sums are sent as they are ready (`sums`, after all of `parts` is sent)
//   their half  -> this rank's part of it is sent first; then the peer's sums arrive over it
//
// Half the additions of the direct way, and one pass less over memory.
void MeshLane::pair_scattered(float* x, size_t elements) {
  const size_t peer = 1 - config_.rank;
  float* own = x + segment(elements, config_.rank);
  float* theirs = x + segment(elements, peer);
  const size_t own_size =
      (segment(elements, config_.rank + 1) - segment(elements, config_.rank)) * 4;
  const size_t their_size = elements * 4 - own_size;
  auto& window = incoming_[peer];
  window.resize(kWindowBytes);
  auto* own_bytes = reinterpret_cast<uint8_t*>(own);
  auto* their_bytes = reinterpret_cast<uint8_t*>(theirs);
  // The peer's sums overwrite this rank's part of them: they contain it, so it has been sent.
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
