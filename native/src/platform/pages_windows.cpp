#include <windows.h>

#include "platform/pages.h"

namespace hearth {

uint8_t* map_pages(size_t size) {
  return static_cast<uint8_t*>(
      VirtualAlloc(nullptr, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
}

void unmap_pages(uint8_t* at, size_t) { VirtualFree(at, 0, MEM_RELEASE); }

// Large pages need a privilege, and must be asked for before they are filled.
void collapse_pages(uint8_t*, size_t, const std::atomic<bool>&) {}

// Windows counts committed memory that nothing was written to.
size_t mapping_unit() { return size_t{16} << 20; }

}  // namespace hearth
