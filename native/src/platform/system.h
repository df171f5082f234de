// What only Linux has, each by its name: calls of other systems are in their places. For tests on
// Linux each can be left out by itself (-DHEARTH_WITHOUT_...), or all (-DHEARTH_PORTABLE=ON), which
// is what other POSIX systems get.
#pragma once

#if defined(__linux__) && !defined(HEARTH_PORTABLE)
#ifndef HEARTH_WITHOUT_AFFINITY
#define HEARTH_AFFINITY
#endif
#ifndef HEARTH_WITHOUT_FUTEXES
#define HEARTH_FUTEXES
#endif
#ifndef HEARTH_WITHOUT_HUGE_PAGES
#define HEARTH_HUGE_PAGES
#endif
#ifndef HEARTH_WITHOUT_SPLICE
#define HEARTH_SPLICE
#endif
#endif
