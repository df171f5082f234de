#include "platform/library.h"

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace hearth {

std::vector<const char*> names_here([[maybe_unused]] std::vector<const char*> windows,
                                    [[maybe_unused]] std::vector<const char*> macos,
                                    [[maybe_unused]] std::vector<const char*> others) {
#if defined(_WIN32)
  return windows;
#elif defined(__APPLE__)
  return macos;
#else
  return others;
#endif
}

#ifdef _WIN32

void* open_library(const char* name) { return LoadLibraryA(name); }
void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}
void close_library(void* library) { FreeLibrary(static_cast<HMODULE>(library)); }

#else

void* open_library(const char* name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
void* find_symbol(void* library, const char* name) { return dlsym(library, name); }
void close_library(void* library) { dlclose(library); }

#endif

}  // namespace hearth
