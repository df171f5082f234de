// What the CPU can do beside the kernels.
#pragma once

namespace hearth {

// True if AES-GCM runs on instructions of its own (AES, and multiplication without carry).
bool has_aes_instructions();

}  // namespace hearth
