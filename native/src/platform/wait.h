// Sleeping until another thread changes a number, and waking those who sleep.
#pragma once

#include <atomic>
#include <cstdint>

namespace hearth {

// Returns when `value` is not `old`, now and then also while it still is.
void sleep_while(const std::atomic<uint32_t>& value, uint32_t old);
// To be called after a change.
void wake_sleepers(std::atomic<uint32_t>& value);

}  // namespace hearth
