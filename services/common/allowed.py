"""Tokens that may be candidates of a row: a bit for each token of the vocabulary, on the wire."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hearth._native import masked

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# The logit of a token that is not allowed: finite, since an infinite one means damaged weights.
LOWEST = float(np.finfo(np.float32).min)


def encode(mask: Mask) -> bytes:
    """[vocab_size] -> bits, the lowest of a byte first."""
    return np.packbits(mask, bitorder="little").tobytes()


def decode(bits: bytes, vocab_size: int) -> Mask:
    """The mask of `encode`. Raises ValueError for a wrong size."""
    expected = -(-vocab_size // 8)
    if len(bits) != expected:
        raise ValueError(
            f"{len(bits)} bytes of allowed tokens, expected {expected} for {vocab_size} tokens"
        )
    data = np.frombuffer(bits, np.uint8)
    return np.unpackbits(data, count=vocab_size, bitorder="little").view(np.bool_)


def only(logits: F32, allowed: Mapping[int, Mask], first_id: int) -> F32:
    """[rows, n] logits of the tokens from `first_id` on; LOWEST for those that are not allowed.

    allowed: by row; others allow all. Copies where it changes something.
    """
    if not allowed:
        return logits
    limited = logits.copy()
    for row, mask in allowed.items():
        own = mask[first_id : first_id + logits.shape[1]]
        limited[row] = masked(logits[row], own, LOWEST)
    return limited
