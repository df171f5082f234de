// Abilities of the CPU that the kernels do not use.
#pragma once

namespace hearth {

// True if AES-GCM runs on instructions of its own (AES, and multiplication without carry).
bool has_aes_instructions();

}  // namespace hearth
