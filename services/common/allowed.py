"""Tokens that may be candidates of a row: a bit for each token of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hearth._native import masked

F32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]
# u8 [ceil(vocab_size / 8)], the lowest bit of a byte first.
Mask = npt.NDArray[np.uint8]

# The logit of a token that is not allowed: finite, since an infinite one means damaged weights.
LOWEST = float(np.finfo(np.float32).min)


def decode(bits: bytes, vocab_size: int) -> Mask:
    """The mask of its bytes. Raises ValueError for a wrong size."""
    expected = -(-vocab_size // 8)
    if len(bits) != expected:
        raise ValueError(
            f"{len(bits)} bytes of allowed tokens, expected {expected} for {vocab_size} tokens"
        )
    return np.frombuffer(bits, np.uint8)


def among(ids: Ids, mask: Mask) -> npt.NDArray[np.bool_]:
    """[n] token ids, all in the vocabulary -> [n], True for those that are allowed."""
    return np.asarray(mask[ids >> 3] >> (ids & 7) & 1, np.bool_)


def only(logits: F32, allowed: Mapping[int, Mask], first_id: int) -> F32:
    """[rows, n] logits of the tokens from `first_id` on; LOWEST for those that are not allowed.

    allowed: by row; others allow all. Copies where it changes something.
    """
    if not allowed:
        return logits
    limited = logits.copy()
    for row, mask in allowed.items():
        limited[row] = masked(logits[row], mask, LOWEST, first_id)
    return limited
