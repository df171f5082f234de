#include "hearth/cpu.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "hearth/kernels.h"

namespace hearth {
namespace {

bool runs_avx2() {
#ifdef HEARTH_HAVE_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

const Kernels* default_kernels() {
  if (const char* name = std::getenv("HEARTH_INSTRUCTION_SET")) {
    if (const Kernels* kernels = find_kernels(name)) return kernels;
  }
  return find_kernels(instruction_sets().front());
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels{default_kernels()};
  return kernels;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  if (runs_avx2()) names.emplace_back("avx2");
  names.emplace_back("scalar");
  return names;
}

const Kernels* find_kernels(const std::string& name) {
  if (name == "scalar") return &kScalarKernels;
#ifdef HEARTH_HAVE_AVX2
  if (name == "avx2" && runs_avx2()) return &kAvx2Kernels;
#endif
  return nullptr;
}

const Kernels& kernels_in_use() { return *current().load(); }

void use_kernels(const std::string& name) {
  const Kernels* kernels = find_kernels(name);
  if (kernels == nullptr) {
    std::string names;
    for (const auto& each : instruction_sets()) names += (names.empty() ? "" : ", ") + each;
    throw std::invalid_argument("no kernels '" + name.substr(0, 32) + "' here: there are " + names);
  }
  current().store(kernels);
}

}  // namespace hearth
