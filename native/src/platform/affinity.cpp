#include "platform/affinity.h"

#include <cstring>

#include "platform/system.h"

#if defined(HEARTH_AFFINITY)
#include <pthread.h>
#include <sched.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace hearth {

#if defined(HEARTH_AFFINITY)

namespace {

cpu_set_t only(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(core), &set);
  return set;
}

}  // namespace

int most_cores() { return CPU_SETSIZE; }

void pin_this_thread(int core) {
  const cpu_set_t set = only(core);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

int current_core() { return sched_getcpu(); }

void leave_cores(std::span<const int> taken) {
  cpu_set_t before;
  if (pthread_getaffinity_np(pthread_self(), sizeof before, &before) != 0) return;
  cpu_set_t free = before;
  for (int core : taken) {
    if (core >= 0 && core < CPU_SETSIZE) CPU_CLR(static_cast<size_t>(core), &free);
  }
  if (CPU_COUNT(&free) == 0) return;
  // The first call moves the thread.
  if (pthread_setaffinity_np(pthread_self(), sizeof free, &free) != 0) return;
  pthread_setaffinity_np(pthread_self(), sizeof before, &before);
}

PinnedHere::PinnedHere(const int* core) {
  if (core == nullptr) return;
  cpu_set_t before;
  static_assert(sizeof before <= sizeof before_);
  if (pthread_getaffinity_np(pthread_self(), sizeof before, &before) != 0) return;
  std::memcpy(before_, &before, sizeof before);
  pinned_ = true;
  pin_this_thread(*core);
}

PinnedHere::~PinnedHere() {
  if (!pinned_) return;
  cpu_set_t before;
  std::memcpy(&before, before_, sizeof before);
  pthread_setaffinity_np(pthread_self(), sizeof before, &before);
}

#elif defined(_WIN32)

namespace {

// Of the first group of processors, which is all that a process has without asking.
DWORD_PTR only(int core) { return DWORD_PTR{1} << core; }

}  // namespace

int most_cores() { return 64; }

void pin_this_thread(int core) { SetThreadAffinityMask(GetCurrentThread(), only(core)); }

int current_core() { return kNoCore; }
void leave_cores(std::span<const int>) {}

PinnedHere::PinnedHere(const int* core) {
  if (core == nullptr) return;
  const DWORD_PTR before = SetThreadAffinityMask(GetCurrentThread(), only(*core));
  if (before == 0) return;
  std::memcpy(before_, &before, sizeof before);
  pinned_ = true;
}

PinnedHere::~PinnedHere() {
  if (!pinned_) return;
  DWORD_PTR before;
  std::memcpy(&before, before_, sizeof before);
  SetThreadAffinityMask(GetCurrentThread(), before);
}

#else

int most_cores() { return 0; }
void pin_this_thread(int) {}
int current_core() { return kNoCore; }
void leave_cores(std::span<const int>) {}
PinnedHere::PinnedHere(const int*) {}
PinnedHere::~PinnedHere() = default;

#endif

}  // namespace hearth
