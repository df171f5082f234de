#include "platform/wait.h"

#ifdef _WIN32
#include <windows.h>
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

#else

void sleep_while(const std::atomic<uint32_t>& value, uint32_t old) {
  value.wait(old, std::memory_order_acquire);
}
void wake_sleepers(std::atomic<uint32_t>& value) { value.notify_all(); }

#endif

}  // namespace hearth
