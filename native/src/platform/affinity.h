// The cores that a thread may run on.
#pragma once

#include <span>

namespace hearth {

// Cores are numbered from 0 to below this; 0 where threads cannot be pinned.
int most_cores();

// Lets the calling thread run on one core only. One that this process may not use is not an error:
// the thread then runs where it may.
void pin_this_thread(int core);

inline constexpr int kNoCore = -1;

// The core that the calling thread runs on now; kNoCore where the system does not tell.
int current_core();

// Moves the calling thread to a core that is not `taken`, if it may use one. Afterwards it may run
// where it could before.
void leave_cores(std::span<const int> taken);

// Pins the calling thread while it lives; then the thread may run where it could before.
class PinnedHere {
 public:
  explicit PinnedHere(const int* core);  // nullptr: does nothing
  ~PinnedHere();
  PinnedHere(const PinnedHere&) = delete;
  PinnedHere& operator=(const PinnedHere&) = delete;

 private:
  [[maybe_unused]] alignas(8) unsigned char before_[128];  // the system's set of cores
  [[maybe_unused]] bool pinned_ = false;
};

}  // namespace hearth
