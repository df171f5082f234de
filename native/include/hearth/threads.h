// A pool whose threads all run the same function and meet at barriers (single program, multiple
// data): a step is one `run`, not hundreds.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace hearth {

// Waiting spins briefly and then sleeps: a waiter costs nothing during a sync, and with fewer cores
// than threads it does not take time from the thread that works.
class Barrier {
 public:
  explicit Barrier(size_t threads) : threads_(static_cast<uint32_t>(threads)) {}
  void wait();

 private:
  const uint32_t threads_;
  alignas(64) std::atomic<uint32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

class ThreadPool {
 public:
  // threads counts the caller of `run`. pin: a core for each thread, or empty; the caller's thread
  // is pinned while `run` lasts. In a pool that is not pinned, a thread that begins on another's
  // core moves to a free one, if there is one.
  // Throws std::invalid_argument for 0 or more than 1024 threads.
  explicit ThreadPool(size_t threads, std::vector<int> pin = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  size_t size() const { return threads_.size() + 1; }

  // Calls work(thread) on every thread, 0 on the caller's own, and returns when all are done.
  // work must not throw. Not for two callers at once.
  void run(const std::function<void(size_t)>& work);

  // Inside `run` only: all threads meet.
  void barrier() { barrier_.wait(); }

 private:
  void loop(size_t thread);
  void join();
  void note_core(size_t thread);
  void leave_shared_core(size_t thread);

  const std::vector<int> pin_;
  std::unique_ptr<std::atomic<int>[]> cores_;  // of each thread, when its last run began
  Barrier barrier_;
  const std::function<void(size_t)>* work_ = nullptr;
  std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// Thread `thread`'s part of [0, items), near equal and contiguous.
inline std::pair<size_t, size_t> split(size_t items, size_t threads, size_t thread) {
  return {items * thread / threads, items * (thread + 1) / threads};
}

// Work stealing over the items of one phase after another: threads end a phase at about the same
// time though one is slower or was held up. Each takes from the front of its own share, and then
// from the back of what others have left. What is taken gets smaller towards the end.
class WorkQueue {
 public:
  explicit WorkQueue(size_t threads) : shares_(threads) {}

  // Every thread calls it once for each phase, between the barriers around that phase.
  void begin_phase(size_t thread);
  // Takes some of the phase's [0, items): whole units, but for the end of the last one. Empty when
  // nothing is left. All threads pass the same items and unit.
  std::pair<size_t, size_t> take(size_t thread, size_t items, size_t unit);

 private:
  // On a cache line of its own. Two phases alternate: a thread clears its half of the next phase
  // while no thread uses it.
  struct alignas(64) Share {
    std::atomic<uint64_t> taken[2] = {0, 0};  // units from the front, and << 32 from the back
    uint32_t phase = 0;                       // its own thread's
  };

  std::vector<Share> shares_;
};

}  // namespace hearth
