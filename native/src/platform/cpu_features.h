// Abilities of the CPU that the compiler cannot be asked for.
#pragma once

namespace hearth {

// True if AES-GCM runs on instructions of its own (AES, and multiplication without carry).
bool has_aes_instructions();
// Integer dot products and matrix products of 64-bit Arm.
bool has_dotprod();
bool has_i8mm();

}  // namespace hearth
