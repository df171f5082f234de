// What GCC and Clang can be asked for, and C++20 has no words for. No other file of the core has
// attributes, pragmas or built-in functions of a compiler.
#pragma once

// Behind the parameters of a lambda: its code lies where it is called, also in a build without
// inlining.
#define HEARTH_ALWAYS_INLINE __attribute__((always_inline))

// In front of a loop: four rounds become one.
#define HEARTH_UNROLL_4 _Pragma("GCC unroll 4")

// A hint to load the line at an address into all caches, harmless past the end of what there is.
// (A macro: what the kernels call may not have external linkage.)
#define HEARTH_PREFETCH(at) __builtin_prefetch(at, 0, 3)
// The same, but not into the first-level cache.
#define HEARTH_PREFETCH_L2(at) __builtin_prefetch(at, 0, 2)

// The compiler moves nothing past this place: it ends a basic block. Long code without branches is
// otherwise scheduled as one, and its vectors are put in memory for want of registers.
#define HEARTH_END_BASIC_BLOCK()      \
  do {                                \
    __label__ hearth_next;            \
    asm goto("" : : : : hearth_next); \
  hearth_next:;                       \
  } while (false)

// A variable that holds a vector of x86 is computed here, in a register.
#define HEARTH_IN_REGISTER(vector) asm("" : "+v"(vector))
