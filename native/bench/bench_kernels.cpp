// How fast this machine reads memory, and how close the matrix products come to that: GB/s of
// weights read, and billions of multiply-adds a second, for each weight type and number of tokens;
// then how fast attention is.
// Each figure is the median of repeats. Memory is measured in the same run, with as many threads,
// because a machine shared with others has a different speed every minute.
//
//   bench_kernels [threads] [megabytes] [type]     defaults: all cores, 256, all types
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "formats/matrix.h"
#include "hearth/bandwidth.h"
#include "hearth/cpu.h"
#include "hearth/kernels.h"
#include "hearth/quant.h"
#include "hearth/threads.h"
#include "layers/products.h"
#include "platform/memory.h"
#include "platform/stopwatch.h"

using namespace hearth;

namespace {

constexpr int kRepeats = 7;
constexpr size_t kColumns = 4096;

double median_seconds(const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < kRepeats; ++i) {
    const Stopwatch watch;
    work();
    seconds.push_back(watch.seconds());
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRepeats / 2, seconds.end());
  return seconds[kRepeats / 2];
}

struct Speed {
  double gigabytes, gigamacs;
};

Speed product(ThreadPool& pool, const Kernels& kernels, const Matrix& matrix, size_t tokens) {
  std::vector<float> x(tokens * kColumns), y(tokens * matrix.rows());
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 255) - 127.0f;
  std::vector<int8_t> q(x.size());
  std::vector<float> scales(x.size() / kBlock);
  std::vector<HalfSums> sums(x.size() / kBlock);
  kernels.quantize(x.data(), x.size(), q.data(), scales.data(), sums.data());
  const Activations input = {.x = x.data(),
                             .columns = kColumns,
                             .q = q.data(),
                             .scales = scales.data(),
                             .sums = sums.data()};
  const size_t scratch_bytes = kernels.matmul_scratch;
  Buffer scratch(pool.size() * scratch_bytes);
  const auto multiply = [&](size_t thread) {
    const auto [begin, end] = split(matrix.groups(), pool.size(), thread);
    multiply_groups(kernels, input, tokens, matrix, matrix.rows(), begin, end, y.data(),
                    scratch.data() + thread * scratch_bytes);
  };
  const double seconds = median_seconds([&] { pool.run(multiply); });
  return {static_cast<double>(matrix.size_bytes()) / seconds * 1e-9,
          static_cast<double>(matrix.rows() * kColumns * tokens) / seconds * 1e-9};
}

// Billions of multiply-adds a second of one thread whose queries pass over a few pages in
// its caches.
double attention(const Kernels& kernels, Type type, size_t head_size, size_t queries,
                 size_t passes) {
  constexpr size_t kPages = 8, kSlots = 32;
  const size_t strip = head_size * kSlots;
  std::vector<float> q(queries * head_size, 0.01f), scratch(queries * kSlots), shrink(queries),
      largest(queries, 0.0f), sum(queries, 0.0f), out(q.size(), 0.0f), wide(kPages * strip, 0.5f);
  std::vector<uint16_t> halves(wide.size());
  kernels.to_f16(wide.data(), wide.size(), halves.data());
  const bool half = type == Type::f16;
  const double seconds = median_seconds([&] {
    for (size_t page = 0; page < kPages * passes; ++page) {
      const size_t at = page % kPages * strip;
      const void* elements = half ? static_cast<const void*>(halves.data() + at) : wide.data() + at;
      const AttendArgs args = {.q = q.data(),
                               .keys = elements,
                               .values = elements,
                               .queries = queries,
                               .key_size = head_size,
                               .value_size = head_size,
                               .slots = kSlots,
                               .stride = kSlots,
                               .scratch = scratch.data(),
                               .shrink = shrink.data(),
                               .largest = largest.data(),
                               .sum = sum.data(),
                               .out = out.data()};
      (half ? kernels.attend_f16 : kernels.attend_f32)(args);
    }
  });
  return 2e-9 * static_cast<double>(kPages * passes * queries * strip) / seconds;
}

}  // namespace

int main(int argc, char** argv) {
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const size_t threads = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : cores;
  const size_t megabytes = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 256;
  if (threads < 1 || threads > 1024 || megabytes < 1 || megabytes > 65536) {
    std::fprintf(stderr, "bench_kernels [threads 1..1024] [megabytes 1..65536] [type]\n");
    return 2;
  }
  const Kernels& kernels = kernels_in_use();
  ThreadPool pool(threads);
  const double memory = read_bandwidth(pool, megabytes << 20, kRepeats) * 1e-9;
  std::printf("%s, %zu threads; reading memory: %.1f GB/s\n", kernels.name, threads, memory);
  std::printf("%-6s %-7s %9s %10s %9s\n", "type", "tokens", "GB/s", "of memory", "GMAC/s");
  for (const TypeInfo& info : kTypeInfos) {
    const Type type = info.type;
    if (argc > 3 && info.name != argv[3]) continue;
    const size_t rows = (megabytes << 20) / row_bytes(type, kColumns) / kGroupRows * kGroupRows;
    std::vector<uint8_t> data(rows * row_bytes(type, kColumns));
    random_rows(type, {1, 0, rows, 0, kColumns, 0.02f}, data.data());
    Arena arena;
    Matrix matrix(type, rows, kColumns, &arena);
    matrix.pack(0, data);
    arena.gather(false);
    data = {};
    for (size_t tokens : {1, 2, 4, 8, 16, 128}) {
      const Speed speed = product(pool, kernels, matrix, tokens);
      std::printf("%-6s %-7zu %9.1f %9.0f%% %9.1f\n", std::string(type_name(type)).c_str(), tokens,
                  speed.gigabytes, 100.0 * speed.gigabytes / memory, speed.gigamacs);
      std::fflush(stdout);
    }
  }
  std::printf("%-10s %-6s %-9s %-8s %9s\n", "attention,", "type", "head size", "queries", "GMAC/s");
  for (Type type : {Type::f16, Type::f32}) {
    for (size_t head_size : {64, 128}) {
      for (size_t queries : {1, 4, 8, 64}) {
        std::printf("%-10s %-6s %-9zu %-8zu %9.1f\n", "one thread",
                    std::string(type_name(type)).c_str(), head_size, queries,
                    attention(kernels, type, head_size, queries, std::min<size_t>(megabytes, 100)));
      }
    }
  }
  return 0;
}
