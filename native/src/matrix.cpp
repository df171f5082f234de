#include "hearth/matrix.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "hearth/quant.h"

namespace hearth {
namespace {

[[maybe_unused]] [[maybe_unused]] constexpr size_t kHugePage = size_t{2} << 20;
// MADV_COLLAPSE, which older headers lack.
[[maybe_unused]] constexpr int kCollapse = 25;

// MADV_COLLAPSE would not ask. Where there is no such file there are no huge pages.
[[maybe_unused]] bool huge_pages_allowed() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string modes;
  return std::getline(file, modes) && modes.find("[never]") == std::string::npos;
}

size_t bytes_of_number(Type type) { return type == Type::f32 ? 4 : 2; }

// Where bytes [4 i, 4 i + 4) of row `lane` stand behind a block's scales.
size_t place(size_t i, size_t lane) { return i * 32 + lane * 4; }

// Eight rows become one group; written from front to back, in one pass.
template <size_t kBytes>
void pack_numbers(const uint8_t* const (&from)[kGroupRows], size_t columns, uint8_t* to) {
  for (size_t c = 0; c < columns; ++c) {
    for (size_t lane = 0; lane < kGroupRows; ++lane, to += kBytes)
      std::memcpy(to, from[lane] + c * kBytes, kBytes);
  }
}

template <size_t kBlockBytes>
void pack_blocks(const uint8_t* const (&from)[kGroupRows], size_t blocks, uint8_t* to) {
  for (size_t b = 0; b < blocks; ++b) {
    const size_t at = b * kBlockBytes;
    for (size_t lane = 0; lane < kGroupRows; ++lane, to += 2) std::memcpy(to, from[lane] + at, 2);
    for (size_t i = 2; i < kBlockBytes; i += 4) {
      for (size_t lane = 0; lane < kGroupRows; ++lane, to += 4)
        std::memcpy(to, from[lane] + at + i, 4);
    }
  }
}

}  // namespace

#ifdef HEARTH_GUARD_BUFFERS

// The address sanitizer sees the end of what comes from the heap, not of a mapping.
void Buffer::Free::operator()(uint8_t* at) const { ::operator delete(at, std::align_val_t{64}); }

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  if (size >> 40 != 0) throw std::bad_alloc();  // which the sanitizer would not throw
  auto* at = static_cast<uint8_t*>(::operator new(size, std::align_val_t{64}));
  std::memset(at, 0, size);
  data_ = {at, Free{size}};
}

void Buffer::gather(const std::atomic<bool>&) const {}

#else

void Buffer::Free::operator()(uint8_t* at) const { munmap(at, size); }

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  data_ = {static_cast<uint8_t*>(at), Free{size}};
}

// Asked for when all is filled, and at once. Before filling, the kernel must make huge pages while
// they are first written, which can take several times as long; with MADV_HUGEPAGE after filling it
// gathers them in the background, at 16 MiB in ten seconds.
void Buffer::gather(const std::atomic<bool>& stop) const {
#ifdef __linux__
  static const bool allowed = huge_pages_allowed();
  if (!allowed) return;
  const auto start = reinterpret_cast<uintptr_t>(data_.get());
  const uintptr_t end = (start + size_) / kHugePage * kHugePage;
  for (uintptr_t at = (start + kHugePage - 1) / kHugePage * kHugePage; at < end; at += kHugePage) {
    if (stop.load(std::memory_order_relaxed)) return;
    // Older than Linux 6.1: not known. Short of whole pages: the others may still be had.
    if (madvise(reinterpret_cast<void*>(at), kHugePage, kCollapse) != 0 && errno == EINVAL) return;
  }
#else
  (void)stop;
#endif
}

#endif

Matrix::Matrix(Type type, size_t rows, size_t columns, std::span<const uint8_t> data,
               ThreadPool* pool)
    : type_(type), rows_(rows), columns_(columns) {
  const size_t stride = row_bytes(type, columns);
  if (data.size() != rows * stride) {
    throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " +
                                std::to_string(columns) + " in " + std::string(type_name(type)) +
                                " has " + std::to_string(rows * stride) + " bytes, not " +
                                std::to_string(data.size()));
  }
  group_bytes_ = stride * kGroupRows;
  data_ = Buffer(groups() * group_bytes_);
  // Made here: what runs on the pool must not throw.
  const std::vector<uint8_t> zeros(rows % kGroupRows ? stride : 0);
  if (pool == nullptr) {
    pack(data, zeros.data(), 0, groups());
  } else {
    pool->run([&](size_t thread) {
      const auto [begin, end] = split(groups(), pool->size(), thread);
      pack(data, zeros.data(), begin, end);
    });
  }
}

void Matrix::pack(std::span<const uint8_t> data, const uint8_t* zeros, size_t begin, size_t end) {
  const size_t stride = group_bytes_ / kGroupRows;
  for (size_t g = begin; g < end; ++g) {
    const uint8_t* from[kGroupRows];
    for (size_t lane = 0; lane < kGroupRows; ++lane) {
      const size_t row = g * kGroupRows + lane;
      from[lane] = row < rows_ ? data.data() + row * stride : zeros;
    }
    uint8_t* to = data_.data() + g * group_bytes_;
    switch (type_) {
      case Type::f32:
        pack_numbers<4>(from, columns_, to);
        break;
      case Type::f16:
        pack_numbers<2>(from, columns_, to);
        break;
      case Type::q80:
        pack_blocks<kQ80BlockBytes>(from, columns_ / kBlock, to);
        break;
      case Type::q40:
        pack_blocks<kQ40BlockBytes>(from, columns_ / kBlock, to);
        break;
    }
  }
}

void Matrix::read_row(size_t row, float* out) const {
  const uint8_t* from = group(row / kGroupRows);
  const size_t lane = row % kGroupRows;
  std::vector<uint8_t> bytes(group_bytes_ / kGroupRows);
  if (!is_quantized(type_)) {
    const size_t size = bytes_of_number(type_);
    for (size_t c = 0; c < columns_; ++c)
      std::memcpy(bytes.data() + c * size, from + (c * kGroupRows + lane) * size, size);
  } else {
    const size_t block_bytes = type_ == Type::q80 ? kQ80BlockBytes : kQ40BlockBytes;
    const size_t quarters = (block_bytes - 2) / 4;
    uint8_t* to = bytes.data();
    for (size_t b = 0; b < columns_ / kBlock; ++b) {
      std::memcpy(to, from + 2 * lane, 2);
      for (size_t i = 0; i < quarters; ++i)
        std::memcpy(to + 2 + 4 * i, from + 2 * kGroupRows + place(i, lane), 4);
      to += block_bytes;
      from += kGroupRows * block_bytes;
    }
  }
  dequantize_row(type_, bytes.data(), columns_, out);
}

}  // namespace hearth
