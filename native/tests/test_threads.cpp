// The pool and its barrier with more threads than cores. The data that the threads pass one another
// are plain numbers, not atomics: the thread sanitizer then sees whether the barrier orders them.
#include "platform/system.h"

#ifdef HEARTH_AFFINITY
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "hearth/threads.h"
#include "platform/affinity.h"

using namespace hearth;

namespace {

void test_split() {
  for (size_t items : {0, 1, 5, 8, 1000}) {
    for (size_t threads : {1, 2, 3, 8}) {
      size_t next = 0;
      for (size_t t = 0; t < threads; ++t) {
        const auto [begin, end] = split(items, threads, t);
        CHECK_EQUAL(begin, next);
        CHECK(end - begin <= items / threads + 1);
        next = end;
      }
      CHECK_EQUAL(next, items);
    }
  }
}

// Phase after phase, every item is taken exactly once, in whole units. One thread is held up until
// the others have taken all that it has not: they must not wait for it, nor it find anything.
void test_work_queue(size_t threads, size_t items, size_t unit) {
  const test::Case each(threads, " threads, ", items, " items by ", unit);
  constexpr size_t kPhases = 20;
  ThreadPool pool(threads);
  WorkQueue queue(threads);
  std::vector<std::vector<int>> taken(kPhases, std::vector<int>(items, 0));
  std::vector<int> ragged(threads, 0);
  std::atomic<size_t> left{0};
  pool.run([&](size_t thread) {
    for (size_t phase = 0; phase < kPhases; ++phase) {
      if (thread == 0) left = items;
      pool.barrier();
      queue.begin_phase(thread);
      while (true) {
        const auto [begin, end] = queue.take(thread, items, unit);
        if (begin == end) break;
        ragged[thread] += begin % unit != 0 || (end % unit != 0 && end != items);
        for (size_t i = begin; i < end; ++i) ++taken[phase][i];
        left -= end - begin;
        if (thread == phase % threads) {
          while (left > 0) std::this_thread::yield();
        }
      }
      pool.barrier();
    }
  });
  for (const auto& phase : taken) {
    for (int count : phase) CHECK_EQUAL(count, 1);
  }
  for (int count : ragged) CHECK_EQUAL(count, 0);
}

// Every thread runs every time, exactly once. A wakeup that is lost hangs here: ctest's limit ends
// it and says so.
void test_runs(size_t threads, int runs) {
  const test::Case each(threads, " threads, ", runs, " runs");
  ThreadPool pool(threads);
  CHECK_EQUAL(pool.size(), threads);
  std::vector<int> counts(threads, 0);
  for (int i = 0; i < runs; ++i) pool.run([&](size_t thread) { ++counts[thread]; });
  for (int count : counts) CHECK_EQUAL(count, runs);
}

// Each phase, a thread writes its number and reads what its neighbour wrote in the phase before.
void test_phases(size_t threads, int runs, int phases) {
  const test::Case each(threads, " threads, ", phases, " phases");
  ThreadPool pool(threads);
  std::vector<uint64_t> slots(threads), wrong(threads);
  for (int run = 0; run < runs; ++run) {
    pool.run([&](size_t thread) {
      for (int phase = 0; phase < phases; ++phase) {
        slots[thread] = static_cast<uint64_t>(run * phases + phase) * 64 + thread;
        pool.barrier();
        const size_t other = (thread + static_cast<size_t>(phase) + 1) % threads;
        wrong[thread] += slots[other] != static_cast<uint64_t>(run * phases + phase) * 64 + other;
        pool.barrier();
      }
    });
  }
  for (uint64_t count : wrong) CHECK_EQUAL(count, uint64_t{0});
}

// One thread is late, by more than the others spin: they sleep, and must be woken.
void test_late_thread() {
  constexpr size_t kThreads = 4;
  ThreadPool pool(kThreads);
  std::vector<int> counts(kThreads, 0);
  for (size_t late = 0; late < kThreads; ++late) {
    for (int i = 0; i < 5; ++i) {
      pool.run([&](size_t thread) {
        if (thread == late) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        pool.barrier();
        ++counts[thread];
      });
      // Between runs the pool sleeps too.
      if (i == 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  for (int count : counts) CHECK_EQUAL(count, 20);
}

// Made and ended at once, used or not: no thread is left behind (the sanitizers would tell).
void test_short_lives() {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(1 + static_cast<size_t>(i) % 5);
    if (i % 2 == 0) continue;
    int ran = 0;
    pool.run([&](size_t thread) {
      if (thread == 0) ++ran;
    });
    CHECK_EQUAL(ran, 1);
  }
}

void test_limits() {
  CHECK_THROWS(ThreadPool(0), std::invalid_argument, "0 is not in 1 .. 1024");
  CHECK_THROWS(ThreadPool(1025), std::invalid_argument, "1025");
  if (most_cores() > 0) {  // else cores are hints that nothing reads
    CHECK_THROWS(ThreadPool(2, {-1}), std::invalid_argument, "-1");
    CHECK_THROWS(ThreadPool(2, {1 << 20}), std::invalid_argument, "1048576");
  }
  // A core that is not there, though it could be: the threads run all the same.
  ThreadPool pool(3, {0, most_cores() > 0 ? most_cores() - 1 : 1023});
  std::vector<int> counts(3, 0);
  pool.run([&](size_t thread) { ++counts[thread]; });
  for (int count : counts) CHECK_EQUAL(count, 1);
}

#ifdef HEARTH_AFFINITY
cpu_set_t cores_of_this_thread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  return set;
}

// Every thread of a pinned pool works on its core, the caller of `run` too, who is free again
// afterwards.
void test_pinning() {
  const cpu_set_t before = cores_of_this_thread();
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &before)) cores.push_back(core);
  }
  for (size_t threads : {1, 2, 3}) {
    const test::Case each(threads, " threads");
    // The last core first: the core where threads start anyway would prove nothing.
    const std::vector<int> pin(cores.rbegin(), cores.rend());
    ThreadPool pool(threads, pin);
    std::vector<cpu_set_t> seen(threads);
    pool.run([&](size_t thread) { seen[thread] = cores_of_this_thread(); });
    for (size_t t = 0; t < threads; ++t) {
      CHECK_EQUAL(CPU_COUNT(&seen[t]), 1);
      CHECK(CPU_ISSET(pin[t % pin.size()], &seen[t]));
    }
    const cpu_set_t after = cores_of_this_thread();
    CHECK(CPU_EQUAL(&after, &before));
  }
}

// Threads that are not pinned may run wherever they could before, however often one moved to
// another core; and where there is no other core, they share it.
void test_keeping_apart() {
  const cpu_set_t before = cores_of_this_thread();
  cpu_set_t one;
  CPU_ZERO(&one);
  int core = 0;
  while (!CPU_ISSET(core, &before)) ++core;
  CPU_SET(core, &one);
  for (const cpu_set_t& allowed : {before, one}) {
    const test::Case each(CPU_COUNT(&allowed), " cores");
    CHECK_EQUAL(sched_setaffinity(0, sizeof allowed, &allowed), 0);
    constexpr size_t kThreads = 3;
    ThreadPool pool(kThreads);  // its threads may run where this one may
    std::vector<int> wrong(kThreads, 0);
    for (int run = 0; run < 200; ++run) {
      pool.run([&](size_t thread) {
        const cpu_set_t now = cores_of_this_thread();
        wrong[thread] += !CPU_EQUAL(&now, &allowed);
      });
    }
    for (int count : wrong) CHECK_EQUAL(count, 0);
  }
  CHECK_EQUAL(sched_setaffinity(0, sizeof before, &before), 0);
}
#endif

// The barrier by itself, among threads outside a pool.
void test_barrier() {
  constexpr size_t kThreads = 6;
  constexpr int kRounds = 300;
  Barrier barrier(kThreads);
  std::vector<int> at(kThreads, 0);
  std::vector<int> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 1; round <= kRounds; ++round) {
        at[t] = round;
        barrier.wait();
        for (int other : at) wrong[t] += other != round;
        barrier.wait();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (int count : wrong) CHECK_EQUAL(count, 0);
  Barrier alone(1);
  for (int i = 0; i < 10; ++i) alone.wait();
}

}  // namespace

int main() {
  test_split();
  for (size_t threads : {1, 2, 5}) {
    for (size_t items : {0, 1, 7, 200}) {
      for (size_t unit : {1, 4}) test_work_queue(threads, items, unit);
    }
  }
  for (size_t threads : {1, 2, 8}) test_runs(threads, 2000);
  test_phases(2, 50, 40);
  test_phases(8, 20, 40);
  test_late_thread();
  test_short_lives();
  test_limits();
#ifdef HEARTH_AFFINITY
  if (std::getenv("HEARTH_REFUSED") == nullptr) {  // see without.cpp
    test_pinning();
    test_keeping_apart();
  }
#endif
  test_barrier();
  return test::finish();
}
