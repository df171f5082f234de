"""Models of a published shape with random weights, made on demand: `random:SHAPE[@LAYERS][:SEED]`.

For measuring speed and memory without a download. LAYERS takes the first layers of the shape alone,
for machines that do not hold all. A cut is generated alone and has the same bytes
as that part of the whole, so nodes agree although none holds the whole model.
"""

import difflib
import hashlib
import math
from dataclasses import replace

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


def random_spec(shape: str, layers: int | None = None) -> ModelSpec:
    """The spec of one of SHAPES, or of its first layers. Raises KeyError for another shape."""
    spec = read_spec(SHAPES[shape], shape)[1]
    if layers is None:
        return spec
    used = spec.kind_of_layer[:layers]
    kinds = sorted(set(used))
    return replace(
        spec,
        name=f"{shape}@{layers}",
        kinds=tuple(spec.kinds[kind] for kind in kinds),
        kind_of_layer=tuple(map(kinds.index, used)),
    )


def open_random(source: str, weights: str | None) -> "RandomModel":
    """Open `random:SHAPE[@LAYERS][:SEED]`.

    Raises:
        ModelError: the shape is unknown, it has fewer layers, or the seed is not a number.
    """
    named, _, seed = source.removeprefix(PREFIX).partition(":")
    shape, cut, layers = named.partition("@")
    if shape not in SHAPES:
        close = difflib.get_close_matches(shape, SHAPES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ModelError(
            f"random shape {shape!r} is unknown{hint}; choose one of {', '.join(SHAPES)}"
        )
    if seed and not (_is_number(seed, 20) and int(seed) < 1 << 64):
        raise ModelError(f"random seed {seed!r} is not a whole number of 0 to {(1 << 64) - 1}")
    most = random_spec(shape).layers
    if cut and not (_is_number(layers, 4) and 1 <= int(layers) <= most):
        raise ModelError(f"{shape} cannot have {layers!r} layers; it has {most}, give 1 to {most}")
    return RandomModel(random_spec(shape, int(layers) if cut else None), int(seed or 0), weights)


def _is_number(text: str, digits: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= digits


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
