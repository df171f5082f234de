// Shared libraries that are looked for while the program runs.
#pragma once

#include <vector>

namespace hearth {

// A library's names on this system, those to be tried first in front.
std::vector<const char*> names_here(std::vector<const char*> windows,
                                    std::vector<const char*> macos,
                                    std::vector<const char*> others);

// nullptr where there is none of that name. One that the process has loaded is found first.
void* open_library(const char* name);
// Its function of that name, or nullptr.
void* find_symbol(void* library, const char* name);
void close_library(void* library);

}  // namespace hearth
