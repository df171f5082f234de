// Reads a fuzzer's bytes as numbers, and what every target shares. A target defines
// LLVMFuzzerTestOneInput and answers any bytes with success or the errors that it names; anything
// else that it sees ends the process by `demand`.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace hearth::fuzz {

// What must hold whatever the bytes are.
inline void demand(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "fuzz: does not hold: %s\n", what);
  std::abort();
}

// A position in the bytes; past their end come zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : left_(data, size) {}

  bool empty() const { return left_.empty(); }
  size_t size() const { return left_.size(); }

  template <typename T>
  T take() {
    T value{};
    const size_t size = std::min(sizeof value, left_.size());
    if (size > 0) std::memcpy(&value, left_.data(), size);
    left_ = left_.subspan(size);
    return value;
  }

  // 0 .. most.
  size_t upto(size_t most) {
    if (most < 256) return take<uint8_t>() % (most + 1);
    return most < 65536 ? take<uint16_t>() % (most + 1) : take<uint64_t>() % (most + 1);
  }

  // Most often a sensible number, now and then one of those that overflow.
  size_t number(size_t sensible) {
    const uint8_t kind = take<uint8_t>();
    if (kind < 224) return kind % (sensible + 1);
    constexpr size_t kEdges[] = {0,
                                 1,
                                 31,
                                 33,
                                 0x7fffffff,
                                 0x80000000,
                                 0xffffffff,
                                 size_t{1} << 32,
                                 size_t{1} << 40,
                                 size_t{1} << 61,
                                 size_t{1} << 62,
                                 (size_t{1} << 63) - 1,
                                 size_t{1} << 63,
                                 ~size_t{0}};
    if (kind < 248) return kEdges[kind % std::size(kEdges)];
    return take<uint64_t>();
  }

  // NaN, infinities, denormals and huge numbers among plain ones.
  float real() {
    const uint8_t kind = take<uint8_t>();
    if (kind < 192) return (static_cast<float>(kind) - 96.0f) / 16.0f;
    return take<float>();
  }

  std::vector<float> reals(size_t count) {
    std::vector<float> all(count);
    for (float& each : all) each = real();
    return all;
  }

  // Exactly `count` bytes: of the input, then zeros. In memory of their own, so that a sanitizer
  // sees who reads beyond them.
  std::vector<uint8_t> bytes(size_t count) {
    std::vector<uint8_t> all(count);
    const size_t size = std::min(count, left_.size());
    if (size > 0) std::memcpy(all.data(), left_.data(), size);
    left_ = left_.subspan(size);
    return all;
  }

  std::string text(size_t most) {
    const std::vector<uint8_t> raw = bytes(upto(most));
    return {raw.begin(), raw.end()};
  }

 private:
  std::span<const uint8_t> left_;
};

}  // namespace hearth::fuzz
