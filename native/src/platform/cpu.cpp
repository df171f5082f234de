#include "hearth/cpu.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "hearth/kernels.h"
#include "platform/cpu_features.h"
#ifdef HEARTH_HAVE_AVX2
#include <cpuid.h>
#endif

namespace hearth {
namespace {

constexpr char kInstructionSetVariable[] = "HEARTH_INSTRUCTION_SET";

#ifdef HEARTH_HAVE_AVX2
// __builtin_cpu_supports also asks whether the system keeps the registers. Not every compiler's
// knows f16c and AVX-VNNI, which have the registers of AVX2.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
bool has_avx_vnni() {
  constexpr unsigned kAvxVnni = 1 << 4;
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

// Instruction sets that this CPU can run, best first.
std::vector<const Kernels*> runnable_kernels() {
  std::vector<const Kernels*> kernels;
#ifdef HEARTH_HAVE_AVX2
  if (runs_avx2()) {
    if (runs_avx512()) kernels.push_back(&kAvx512Kernels);
    if (has_avx_vnni()) kernels.push_back(&kAvxVnniKernels);
    kernels.push_back(&kAvx2Kernels);
  }
#endif
#ifdef HEARTH_HAVE_NEON
  // The i8mm kernels call those of dotprod for small products.
  if (has_dotprod() && has_i8mm()) kernels.push_back(&kI8mmKernels);
  if (has_dotprod()) kernels.push_back(&kDotprodKernels);
  kernels.push_back(&kNeonKernels);
#endif
  kernels.push_back(&kScalarKernels);
  return kernels;
}

const Kernels* checked_kernels(const std::string& name, const std::string& what) {
  if (const Kernels* kernels = find_kernels(name)) return kernels;
  std::string names;
  for (const auto& each : instruction_sets()) names += (names.empty() ? "" : ", ") + each;
  throw std::invalid_argument(what + " '" + name.substr(0, 32) + "': this machine has " + names);
}

const Kernels* default_kernels() {
  if (const char* name = std::getenv(kInstructionSetVariable); name != nullptr && *name != '\0')
    return checked_kernels(name, std::string(kInstructionSetVariable) + " is");
  return runnable_kernels().front();
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels{default_kernels()};
  return kernels;
}

}  // namespace

std::vector<std::string> missing_instructions() {
  std::vector<std::string> missing;
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("sse3")) missing.emplace_back("SSE3");
  if (!__builtin_cpu_supports("ssse3")) missing.emplace_back("SSSE3");
  if (!__builtin_cpu_supports("sse4.1")) missing.emplace_back("SSE4.1");
  if (!__builtin_cpu_supports("sse4.2")) missing.emplace_back("SSE4.2");
  if (!__builtin_cpu_supports("popcnt")) missing.emplace_back("POPCNT");
#endif
  return missing;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* each : runnable_kernels()) names.emplace_back(each->name);
  return names;
}

const Kernels* find_kernels(const std::string& name) {
  for (const Kernels* each : runnable_kernels()) {
    if (name == each->name) return each;
  }
  return nullptr;
}

const Kernels& kernels_in_use() { return *current().load(); }

void use_kernels(const std::string& name) { current().store(checked_kernels(name, "no kernels")); }

}  // namespace hearth
