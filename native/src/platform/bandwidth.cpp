#include "hearth/bandwidth.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "platform/compiler.h"
#include "platform/memory.h"
#include "platform/stopwatch.h"

namespace hearth {
namespace {

// Words to prefetch ahead: 8 KiB, as in the matrix products.
constexpr size_t kAhead = 1024;

}  // namespace

double read_bandwidth(ThreadPool& pool, size_t bytes, size_t repeats) {
  Buffer buffer(bytes / 64 * 64);
  // Written first: untouched memory is all one page of zeros. Then moved to huge pages as weights
  // are, or the figure would be below what decode reaches.
  std::fill_n(buffer.data(), buffer.size(), uint8_t{1});
  buffer.gather(buffer.size(), false);
  const auto* words = reinterpret_cast<const uint64_t*>(buffer.data());
  const size_t lines = buffer.size() / 64;
  std::vector<uint64_t> totals(pool.size() * 8);
  std::vector<double> seconds;
  for (size_t i = 0; i < std::max<size_t>(repeats, 1); ++i) {
    const Stopwatch watch;
    pool.run([&](size_t thread) {
      const auto [begin, end] = split(lines, pool.size(), thread);
      // Eight sums at once, so that additions are not what is measured.
      uint64_t sums[8] = {};
      for (size_t line = begin; line < end; ++line) {
        HEARTH_PREFETCH(words + line * 8 + kAhead);
        for (size_t k = 0; k < 8; ++k) sums[k] += words[line * 8 + k];
      }
      for (uint64_t sum : sums) totals[thread * 8] += sum;
    });
    seconds.push_back(watch.seconds());
  }
  // The sums are used, or the compiler would drop the reads.
  volatile uint64_t keep = 0;
  for (uint64_t total : totals) keep = keep + total;
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<long>(seconds.size() / 2),
                   seconds.end());
  return static_cast<double>(buffer.size()) / seconds[seconds.size() / 2];
}

}  // namespace hearth
