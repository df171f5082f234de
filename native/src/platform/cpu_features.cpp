#include "platform/cpu_features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#include <sys/types.h>
#endif

namespace hearth {
namespace {

// As the kernel reports them; older headers lack names for some.
#if defined(__aarch64__) && defined(__linux__)
constexpr unsigned long kAes = 1 << 3, kPmull = 1 << 4, kDotprod = 1 << 20;  // AT_HWCAP
constexpr unsigned long kI8mm = 1 << 13;                                     // AT_HWCAP2

bool has(unsigned long vector, unsigned long bits) { return (getauxval(vector) & bits) == bits; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

}  // namespace

bool has_aes_instructions() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__) && defined(__linux__)
  return has(AT_HWCAP, kAes | kPmull);
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

bool has_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
  return has(AT_HWCAP, kDotprod);
#elif defined(__aarch64__) && defined(__APPLE__)
  return has("hw.optional.arm.FEAT_DotProd");
#else
  return false;
#endif
}

bool has_i8mm() {
#if defined(__aarch64__) && defined(__linux__)
  return has(AT_HWCAP2, kI8mm);
#elif defined(__aarch64__) && defined(__APPLE__)
  return has("hw.optional.arm.FEAT_I8MM");
#else
  return false;
#endif
}

}  // namespace hearth
