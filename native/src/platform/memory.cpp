#include "platform/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

namespace hearth {

#ifdef HEARTH_GUARD_BUFFERS

// The address sanitizer detects the end of a heap allocation, not of a mapping.
void Buffer::Free::operator()(uint8_t* at) const { ::operator delete(at, std::align_val_t{64}); }

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  if (size >> 40 != 0) throw std::bad_alloc();  // the sanitizer would abort
  auto* at = static_cast<uint8_t*>(::operator new(size, std::align_val_t{64}));
  std::memset(at, 0, size);
  data_ = {at, Free{size}};
}

void Buffer::gather(size_t, const std::atomic<bool>&) const {}

uint8_t* Arena::take(size_t size) {
  chunks_.push_back({Buffer(size), size});
  return chunks_.back().buffer.data();
}

#else

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// One mapping for the weights of most home machines' shards; only what is used is ever there.
constexpr size_t kChunk = size_t{1} << 30;
// MADV_COLLAPSE, which older headers lack.
[[maybe_unused]] constexpr int kCollapse = 25;

// MADV_COLLAPSE does not check this setting. Without the file there are no huge pages.
[[maybe_unused]] bool huge_pages_allowed() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos;
}

}  // namespace

void Buffer::Free::operator()(uint8_t* at) const { munmap(at, size); }

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  data_ = {static_cast<uint8_t*>(at), Free{size}};
}

// Collapses pages after they are filled, and synchronously. Before filling, the kernel would make
// huge pages at the first write, which can take several times as long; with MADV_HUGEPAGE after
// filling it collapses them in the background, at 16 MiB in ten seconds.
void Buffer::gather([[maybe_unused]] size_t filled,
                    [[maybe_unused]] const std::atomic<bool>& stop) const {
#ifdef __linux__
  static const bool allowed = huge_pages_allowed();
  if (!allowed) return;
  const auto start = reinterpret_cast<uintptr_t>(data_.get());
  const uintptr_t end = (start + filled) / kHugePage * kHugePage;
  for (uintptr_t at = (start + kHugePage - 1) / kHugePage * kHugePage; at < end; at += kHugePage) {
    if (stop.load(std::memory_order_relaxed)) return;
    // EINVAL: unknown before Linux 6.1. Other errors concern this one page.
    if (madvise(reinterpret_cast<void*>(at), kHugePage, kCollapse) != 0 && errno == EINVAL) return;
  }
#endif
}

uint8_t* Arena::take(size_t size) {
  const size_t whole = (size + 63) / 64 * 64;
  if (whole < size) throw std::bad_alloc();
  if (chunks_.empty() || chunks_.back().buffer.size() - chunks_.back().used < whole)
    chunks_.push_back({Buffer(std::max(whole, kChunk)), 0});
  Chunk& chunk = chunks_.back();
  uint8_t* at = chunk.buffer.data() + chunk.used;
  chunk.used += whole;
  return at;
}

#endif

void Arena::gather(const std::atomic<bool>& stop) const {
  for (const Chunk& chunk : chunks_) chunk.buffer.gather(chunk.used, stop);
}

}  // namespace hearth
