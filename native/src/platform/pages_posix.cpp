#include <sys/mman.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "platform/pages.h"
#include "platform/system.h"

namespace hearth {
namespace {

// MADV_COLLAPSE, which older headers lack.
[[maybe_unused]] constexpr int kCollapse = 25;
[[maybe_unused]] constexpr size_t kHugePage = size_t{2} << 20;

// MADV_COLLAPSE does not check this setting. Without the file there are no huge pages.
[[maybe_unused]] bool huge_pages_allowed() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos;
}

#ifdef MAP_NORESERVE
constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else
constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
#endif

}  // namespace

uint8_t* map_pages(size_t size) {
  void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  return at == MAP_FAILED ? nullptr : static_cast<uint8_t*>(at);
}

void unmap_pages(uint8_t* at, size_t size) { munmap(at, size); }

// Collapses pages after they are filled, and synchronously. Before filling, the kernel would make
// huge pages at the first write, which can take several times as long; with MADV_HUGEPAGE after
// filling it collapses them in the background, at 16 MiB in ten seconds.
void collapse_pages([[maybe_unused]] uint8_t* first, [[maybe_unused]] size_t size,
                    [[maybe_unused]] const std::atomic<bool>& stop) {
#ifdef HEARTH_HUGE_PAGES
  static const bool allowed = huge_pages_allowed();
  if (!allowed) return;
  const auto start = reinterpret_cast<uintptr_t>(first);
  const uintptr_t end = (start + size) / kHugePage * kHugePage;
  for (uintptr_t at = (start + kHugePage - 1) / kHugePage * kHugePage; at < end; at += kHugePage) {
    if (stop.load(std::memory_order_relaxed)) return;
    // EINVAL: unknown before Linux 6.1. Other errors concern this one page.
    if (madvise(reinterpret_cast<void*>(at), kHugePage, kCollapse) != 0 && errno == EINVAL) return;
  }
#endif
}

// The weights of most home machines' shards.
size_t mapping_unit() { return size_t{1} << 30; }

}  // namespace hearth
