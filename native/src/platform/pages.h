// Memory from the system, in pages.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace hearth {

// Zeroed. nullptr if the system has none left.
uint8_t* map_pages(size_t size);
void unmap_pages(uint8_t* at, size_t size);

// Moves filled pages into huge ones, where the system has them; `stop` ends it early.
void collapse_pages(uint8_t* at, size_t size, const std::atomic<bool>& stop);

// Bytes to map at once for many small pieces: address space only where what is not written takes no
// memory.
size_t mapping_unit();

}  // namespace hearth
