"""MXFP4 as Hugging Face checkpoints hold it: the nibbles of all blocks, and their scales apart.

A block is 32 numbers of 4 bits with a power of two (OCP: Microscaling formats, 2023). There, byte k
holds numbers 2k (low nibble) and 2k + 1. In GGUF and in Hearth it holds k and k + 16, behind the
scale.
"""

import numpy as np

from hearth.converter.stored import Place, Stored, StoredBytes
from hearth.converter.weights import Bytes

_BLOCK, _HALF = 32, 16


class Mxfp4Blocks(Stored):
    """Rows in mxfp4, of bytes of nibbles [rows, columns / 2] and of scales [rows, columns / 32]."""

    kind = "mxfp4"

    def __init__(self, blocks: StoredBytes, scales: StoredBytes) -> None:
        self._blocks, self._scales = blocks, scales
        self.rows, self.columns = blocks.rows, 2 * blocks.width

    def places(self) -> list[Place]:
        return [self._blocks.place(), self._scales.place()]

    def form(self) -> list[str | int]:
        return ["mxfp4 in pieces", self.rows, self.columns]

    def read_rows(self, begin: int, end: int) -> Bytes:
        count = end - begin
        shape = (count, self.columns // _BLOCK, _HALF)
        pairs = self._blocks.read_rows(begin, end).reshape(shape)
        numbers = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(*shape[:2], _BLOCK)
        result = np.empty((*shape[:2], 1 + _HALF), dtype=np.uint8)
        result[..., 0] = self._scales.read_rows(begin, end)
        result[..., 1:] = numbers[..., :_HALF] | numbers[..., _HALF:] << 4
        return result.reshape(count, -1)
