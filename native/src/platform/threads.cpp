#include "hearth/threads.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "platform/affinity.h"
#include "platform/wait.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the threads of a step are ever apart when each has a core. By a clock: what a hint
// costs differs by a factor of ten between CPUs.
constexpr auto kSpin = std::chrono::microseconds(20);
// Looks between two readings of the clock, which costs about as much as one of them.
constexpr int kLooks = 16;

void spin_hint() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // `yield` does nothing on Cortex-A
#endif
}

// True if `value` differs from `old` within kSpin.
bool spin_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
  if (value.load(std::memory_order_acquire) != old) return true;
  const auto until = Clock::now() + kSpin;
  do {
    for (int i = 0; i < kLooks; ++i) {
      if (value.load(std::memory_order_acquire) != old) return true;
      spin_hint();
    }
  } while (Clock::now() < until);
  return false;
}

// Waits until `value` differs from `old`.
void wait_change(const std::atomic<uint32_t>& value, uint32_t old) {
  if (spin_for_change(value, old)) return;
  while (value.load(std::memory_order_acquire) == old) sleep_while(value, old);
}

// The core of a pool's thread; nullptr if the pool is not pinned.
const int* core_of(const std::vector<int>& cores, size_t thread) {
  return cores.empty() ? nullptr : &cores[thread % cores.size()];
}

}  // namespace

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_acq_rel);
    wake_sleepers(round_);
    return;
  }
  wait_change(round_, round);
}

ThreadPool::ThreadPool(size_t threads, std::vector<int> pin)
    : pin_(std::move(pin)), barrier_(threads) {
  if (threads == 0 || threads > 1024)
    throw std::invalid_argument("threads: " + std::to_string(threads) + " is not in 1 .. 1024");
  for (int core : pin_) {
    if (most_cores() > 0 && (core < 0 || core >= most_cores()))
      throw std::invalid_argument("pin: no core " + std::to_string(core));
  }
  cores_ = std::make_unique<std::atomic<int>[]>(threads);
  for (size_t t = 0; t < threads; ++t) cores_[t].store(kNoCore, std::memory_order_relaxed);
  threads_.reserve(threads - 1);
  try {
    for (size_t t = 1; t < threads; ++t) threads_.emplace_back([this, t] { loop(t); });
  } catch (...) {  // the system could start only some of them
    join();
    throw;
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() {
  stop_.store(true, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  wake_sleepers(generation_);
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(size_t)>& work) {
  work_ = &work;
  note_core(0);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  wake_sleepers(generation_);
  const PinnedHere pinned(core_of(pin_, 0));  // the threads that the caller makes stay free
  work(0);
  barrier_.wait();
}

void ThreadPool::loop(size_t thread) {
  if (const int* core = core_of(pin_, thread)) pin_this_thread(*core);
  uint32_t seen = 0;
  while (true) {
    wait_change(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_acquire)) return;
    note_core(thread);
    leave_shared_core(thread);
    (*work_)(thread);
    barrier_.wait();
  }
}

void ThreadPool::note_core(size_t thread) {
  cores_[thread].store(current_core(), std::memory_order_relaxed);
}

// The system may wake a thread on the core of the one that woke it, and leaves it there for many
// steps: each waits for the other, and a step takes up to twice as long.
void ThreadPool::leave_shared_core(size_t thread) {
  if (!pin_.empty()) return;
  const auto core_of = [&](size_t t) { return cores_[t].load(std::memory_order_relaxed); };
  const int core = core_of(thread);
  size_t sharer = 0;
  while (sharer < thread && core_of(sharer) != core) ++sharer;
  if (sharer == thread || core == kNoCore) return;
  std::vector<int> taken;
  for (size_t t = 0; t < size(); ++t) {
    if (t != thread && core_of(t) != kNoCore) taken.push_back(core_of(t));
  }
  leave_cores(taken);
  note_core(thread);
}

// Memory orders are relaxed: the barriers around a phase order what the threads compute.
void WorkQueue::begin_phase(size_t thread) {
  Share& share = shares_[thread];
  ++share.phase;
  share.taken[(share.phase + 1) % 2].store(0, std::memory_order_relaxed);
}

std::pair<size_t, size_t> WorkQueue::take(size_t thread, size_t items, size_t unit) {
  const size_t threads = shares_.size(), units = (items + unit - 1) / unit;
  const size_t which = shares_[thread].phase % 2;
  for (size_t i = 0; i < threads; ++i) {
    const size_t owner = (thread + i) % threads;
    const auto [begin, end] = split(units, threads, owner);
    std::atomic<uint64_t>& taken = shares_[owner].taken[which];
    uint64_t now = taken.load(std::memory_order_relaxed);
    while (true) {
      const size_t front = now & 0xffffffff, back = now >> 32;
      const size_t left = end - begin - front - back;
      if (left == 0) break;
      const size_t count = threads == 1 ? left : (left + 1) / 2;
      const uint64_t next = now + (i == 0 ? count : count << 32);
      if (!taken.compare_exchange_weak(now, next, std::memory_order_relaxed)) continue;
      const size_t first = i == 0 ? begin + front : end - back - count;
      return {first * unit, std::min((first + count) * unit, items)};
    }
  }
  return {0, 0};
}

}  // namespace hearth
