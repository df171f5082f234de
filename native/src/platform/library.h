// Shared libraries that are looked for while the program runs.
#pragma once

namespace hearth {

// nullptr where there is none of that name. One that the process has loaded is found first.
void* open_library(const char* name);
// Its function of that name, or nullptr.
void* find_symbol(void* library, const char* name);
void close_library(void* library);

}  // namespace hearth
