#include "platform/wait.h"

#include "platform/system.h"

#ifdef _WIN32
#include <windows.h>
#elif !defined(HEARTH_FUTEXES) && !defined(__APPLE__)
#include <condition_variable>
#include <mutex>
#endif

namespace hearth {

#ifdef _WIN32

// (libstdc++ 12 there loses wake-ups of std::atomic's wait: its table of sleepers has no futex.)
void sleep_while(const std::atomic<uint32_t>& value, uint32_t old) {
  static_assert(sizeof value == sizeof old);
  auto* at = const_cast<std::atomic<uint32_t>*>(&value);
  WaitOnAddress(reinterpret_cast<volatile void*>(at), &old, sizeof old, INFINITE);
}
void wake_sleepers(std::atomic<uint32_t>& value) { WakeByAddressAll(&value); }

#elif defined(HEARTH_FUTEXES) || defined(__APPLE__)

void sleep_while(const std::atomic<uint32_t>& value, uint32_t old) {
  value.wait(old, std::memory_order_acquire);
}
void wake_sleepers(std::atomic<uint32_t>& value) { value.notify_all(); }

#else

// Without futexes: one place to sleep for all values. std::atomic's wait would poll.
namespace {

std::mutex sleeping;
std::condition_variable changed;

}  // namespace

void sleep_while(const std::atomic<uint32_t>& value, uint32_t old) {
  std::unique_lock lock(sleeping);
  changed.wait(lock, [&] { return value.load(std::memory_order_acquire) != old; });
}
void wake_sleepers(std::atomic<uint32_t>&) {
  // The value changed before the call. A sleeper that looked earlier has the lock, or waits.
  {
    std::lock_guard lock(sleeping);
  }
  changed.notify_all();
}

#endif

}  // namespace hearth
