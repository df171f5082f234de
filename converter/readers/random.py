"""Models of a published shape with random weights, generated on demand: `random:SHAPE[:SEED]`.

For measuring speed and memory without a download. A cut is generated alone and has the same bytes
as that part of the whole, so nodes agree although none holds the whole model.
"""

import difflib
import hashlib
import math

import numpy as np

from hearth import _native
from hearth.converter.errors import ModelError
from hearth.converter.fingerprint import fingerprint
from hearth.converter.hf_config import read_spec
from hearth.converter.model import Model, Span, TokenizerSource
from hearth.converter.readers.shapes import SHAPES
from hearth.converter.spec import ModelSpec
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.converter.weights import Bytes

PREFIX = "random:"
DEFAULT_WEIGHTS = "q4_0"
# Changed when the same shape and seed would give other weights.
_GENERATOR = "random-1"

# Vectors' elements: 1 of norms, 0 of biases and sinks, and these.
_VECTORS = {
    "decay_rate": -1.0,
    "conv_q": 0.5,
    "conv_k": 0.5,
    "conv_v": 0.5,
    "layer_scale": 1.0,
    "expert_scales": 1.0,
}


def random_spec(shape: str) -> ModelSpec:
    """The spec of one of SHAPES. Raises KeyError for another."""
    return read_spec(SHAPES[shape], shape)[1]


def open_random(source: str, weights: str | None) -> "RandomModel":
    """Open `random:SHAPE[:SEED]`. Raises ModelError for an unknown shape or a bad seed."""
    shape, _, seed = source.removeprefix(PREFIX).partition(":")
    if shape not in SHAPES:
        close = difflib.get_close_matches(shape, SHAPES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ModelError(
            f"random shape {shape!r} is unknown{hint}; choose one of {', '.join(SHAPES)}"
        )
    if seed and not (seed.isascii() and seed.isdecimal() and int(seed) < 1 << 64):
        raise ModelError(f"random seed {seed!r} is not a whole number of 0 to {(1 << 64) - 1}")
    return RandomModel(random_spec(shape), int(seed or 0), weights)


class RandomModel(Model):
    """A model without files.

    Activations keep about their size from layer to layer: the standard deviation of a matrix is
    1/sqrt(columns), and smaller by sqrt(2 x layers) where it adds to the residual stream."""

    def __init__(self, spec: ModelSpec, seed: int = 0, weights: str | None = None) -> None:
        source = TokenizerSource(
            load=lambda: PlainTokenizer(spec.vocab_size),
            files=dict,
            bos_id=PlainTokenizer.BOS,
            plain=True,
        )
        super().__init__(spec, weights, source)
        self.seed = seed

    def identity(self, name: str) -> bytes:
        self._shape(name)
        return fingerprint([_GENERATOR, repr(self.spec), self.seed, name])

    def stored_type(self, name: str) -> str:
        self._shape(name)
        tensor = self.spec.tensor(name)
        if tensor.vector or tensor.exact:
            return "f32"
        return self.effective_type(name, self._asked(name) or DEFAULT_WEIGHTS)

    def _cut(self, name: str, kind: str, rows: Span, columns: Span) -> Bytes:
        count = columns[1] - columns[0]
        tensor = self.spec.tensor(name)
        if tensor.vector:
            value = _VECTORS.get(tensor.part, float(name.endswith("norm")))
            return np.full((rows[1] - rows[0], count), value, dtype="<f4").view(np.uint8)
        total = tensor.shape[1]
        scale = 1 / math.sqrt(total)
        if tensor.part in ("wo", "w2", "experts_w2"):
            scale /= math.sqrt(2 * self.spec.layers)
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
        return _native.random_slice(
            kind, seed, rows[0], rows[1] - rows[0], columns[0], count, total, scale
        )
