// HEARTH_LINUX: calls that only Linux has are used. -DHEARTH_PORTABLE=ON builds without them, which
// is what other POSIX systems get, so that it can be tested on Linux.
#pragma once

#if defined(__linux__) && !defined(HEARTH_PORTABLE)
#define HEARTH_LINUX
#endif
