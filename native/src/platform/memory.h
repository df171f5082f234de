// Memory for weights and KV pages: straight from the system, and in huge pages where those help.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace hearth {

// Memory aligned to 64 bytes.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size);  // zeroed; throws std::bad_alloc
  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }

  // Moves bytes [0, filled) into huge pages, whole ones only: where TLB misses are expensive,
  // weights then stream 1.5 times as fast. Takes about half a second per gigabyte, during which the
  // buffer can be used; `stop` ends it early. Does nothing where the system has no huge pages or
  // disables them.
  void gather(size_t filled, const std::atomic<bool>& stop) const;

 private:
  struct Free {
    Free() : size(0) {}
    explicit Free(size_t bytes) : size(bytes) {}
    void operator()(uint8_t* at) const;
    size_t size;
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t size_ = 0;
};

// An arena allocator: pieces one after another, freed together. Separate matrices, whose sizes are
// not multiples of a huge page, would each leave their ends in small pages. What is not taken costs
// no memory.
class Arena {
 public:
  // Zeroed, aligned to 64 bytes. Throws std::bad_alloc. Not for two threads at once.
  uint8_t* take(size_t size);
  // See Buffer::gather. Not while another thread takes.
  void gather(const std::atomic<bool>& stop) const;

 private:
  struct Chunk {
    Buffer buffer;
    size_t used;
  };
  std::vector<Chunk> chunks_;
};

}  // namespace hearth
