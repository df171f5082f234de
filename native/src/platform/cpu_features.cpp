#include "platform/cpu_features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace hearth {

bool has_aes_instructions() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kAes = 1 << 3, kPmull = 1 << 4;  // HWCAP_AES, HWCAP_PMULL
  return (getauxval(AT_HWCAP) & (kAes | kPmull)) == (kAes | kPmull);
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

}  // namespace hearth
