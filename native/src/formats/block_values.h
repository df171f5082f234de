// The values of codes that are not evenly spaced, with internal linkage: files for newer
// instruction sets include it.
#pragma once

#include <cstdint>

namespace hearth {

// IQ4_NL and IQ4_XS.
constexpr int8_t kUnevenValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
// E2M1, doubled (MXFP4).
constexpr int8_t kFloat4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace hearth
