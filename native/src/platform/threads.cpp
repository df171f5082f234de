#include "hearth/threads.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the threads of a step are ever apart when each has a core. By a clock: what a hint
// costs differs by a factor of ten between CPUs.
constexpr auto kSpin = std::chrono::microseconds(20);
// Looks between two readings of the clock, which costs about as much as one of them.
constexpr int kLooks = 16;

constexpr int kNoCore = -1;

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
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void pin_this_thread([[maybe_unused]] const std::vector<int>& cores,
                     [[maybe_unused]] size_t thread) {
#ifdef __linux__
  if (cores.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cores[thread % cores.size()]), &set);
  // A core that this process may not use is not an error: the thread then runs where it may.
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#endif
}

// Pins the calling thread while it works as thread 0 of a pool; then it may run where it could
// before, and so may the threads that it makes.
class CallerPin {
 public:
  explicit CallerPin([[maybe_unused]] const std::vector<int>& cores) {
#ifdef __linux__
    if (cores.empty()) return;
    pinned_ = pthread_getaffinity_np(pthread_self(), sizeof before_, &before_) == 0;
    if (pinned_) pin_this_thread(cores, 0);
#endif
  }
  ~CallerPin() {
#ifdef __linux__
    if (pinned_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
#endif
  }
  CallerPin(const CallerPin&) = delete;
  CallerPin& operator=(const CallerPin&) = delete;

#ifdef __linux__
 private:
  cpu_set_t before_;
  bool pinned_ = false;
#endif
};

}  // namespace

void Barrier::wait() {
  const uint32_t round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.fetch_add(1, std::memory_order_acq_rel);
    round_.notify_all();
    return;
  }
  wait_change(round_, round);
}

ThreadPool::ThreadPool(size_t threads, std::vector<int> pin)
    : pin_(std::move(pin)), barrier_(threads) {
  if (threads == 0 || threads > 1024)
    throw std::invalid_argument("threads: " + std::to_string(threads) + " is not in 1 .. 1024");
#ifdef __linux__
  for (int core : pin_) {
    if (core < 0 || core >= CPU_SETSIZE)
      throw std::invalid_argument("pin: no core " + std::to_string(core));
  }
#endif
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
  generation_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(size_t)>& work) {
  work_ = &work;
  note_core(0);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  generation_.notify_all();
  const CallerPin pinned(pin_);
  work(0);
  barrier_.wait();
}

void ThreadPool::loop(size_t thread) {
  pin_this_thread(pin_, thread);
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

void ThreadPool::note_core([[maybe_unused]] size_t thread) {
#ifdef __linux__
  cores_[thread].store(sched_getcpu(), std::memory_order_relaxed);
#endif
}

// The system may wake a thread on the core of the one that woke it, and leaves it there for many
// steps: each waits for the other, and a step takes up to twice as long.
void ThreadPool::leave_shared_core([[maybe_unused]] size_t thread) {
#ifdef __linux__
  if (!pin_.empty()) return;
  const auto core_of = [&](size_t t) { return cores_[t].load(std::memory_order_relaxed); };
  const int core = core_of(thread);
  size_t sharer = 0;
  while (sharer < thread && core_of(sharer) != core) ++sharer;
  if (sharer == thread || core < 0) return;
  cpu_set_t before;
  if (pthread_getaffinity_np(pthread_self(), sizeof before, &before) != 0) return;
  cpu_set_t free = before;
  for (size_t t = 0; t < size(); ++t) {
    if (t != thread && core_of(t) >= 0) CPU_CLR(static_cast<size_t>(core_of(t)), &free);
  }
  if (CPU_COUNT(&free) == 0) return;
  // The first call moves the thread, and with the second it may run where it could before.
  pthread_setaffinity_np(pthread_self(), sizeof free, &free);
  pthread_setaffinity_np(pthread_self(), sizeof before, &before);
  note_core(thread);
#endif
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
