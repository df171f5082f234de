"""Number formats of files that the core does not compute with.

Tensors in them are converted while they are loaded. Those of GGUF files are unpacked by ggml's own
package `gguf`: the code books of the IQ formats are tables of ggml, best read from where they are
kept. Those of quantized checkpoints (quantized.py) are f32 by the time that their rows are read. So
are packed matrices that are turned ("unpacked", stored.py).
"""

import numpy as np
import numpy.typing as npt

# (elements, bytes) of a block, by name.
SIZES = {
    "iq1_s": (256, 50), "iq1_m": (256, 56), "iq2_xxs": (256, 66), "iq2_xs": (256, 74),
    "iq2_s": (256, 82), "iq3_xxs": (256, 98), "iq3_s": (256, 110), "tq1_0": (256, 54),
    "tq2_0": (256, 66), "nvfp4": (64, 36),
    "fp8": (1, 4), "fp4": (1, 4), "int8": (1, 4), "int4": (1, 4), "int2": (1, 4),
    "unpacked": (1, 4),
}  # fmt: skip
# Of these, the ones that are f32 when they are read.
UNPACKED = ("fp8", "fp4", "int8", "int4", "int2", "unpacked")

# The type of the core that holds the numbers of each well enough, with the fewest bits.
NEAREST = {
    "iq1_s": "q4_k", "iq1_m": "q4_k", "iq2_xxs": "q4_k", "iq2_xs": "q4_k", "iq2_s": "q4_k",
    "iq3_xxs": "q5_k", "iq3_s": "q5_k", "tq1_0": "q4_k", "tq2_0": "q4_k", "nvfp4": "q8_0",
    "fp8": "q8_0", "fp4": "q8_0", "int8": "q8_0", "int4": "q8_0", "int2": "q8_0",
    "unpacked": "q8_0",
}  # fmt: skip


def unpack(data: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.uint8]:
    """Rows of `kind`, uint8 [rows, bytes], as bytes of f32."""
    if kind in UNPACKED:
        return data
    # Late: importing it takes a tenth of a second, and few files need it.
    import gguf

    # Scales that are infinite or not numbers are looked for in the result.
    with np.errstate(all="ignore"):
        unpacked = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.upper()])
    return np.ascontiguousarray(unpacked, dtype="<f4").view(np.uint8)
