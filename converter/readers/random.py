"""Models of a published shape with random weights, generated on demand: `random:SHAPE[:SEED]`.

For measuring speed and memory without a download. A cut is generated alone and has the same bytes
as that part of the whole, so nodes agree although none holds the whole model.
"""

import hashlib
import math

import numpy as np

from hearth import _native
from hearth.converter.errors import ModelError
from hearth.converter.fingerprint import fingerprint
from hearth.converter.model import Model, Span, TokenizerSource
from hearth.converter.spec import ModelSpec, RopeScaling, is_norm
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.converter.weights import Bytes

PREFIX = "random:"
DEFAULT_WEIGHTS = "q4_0"
# Changed when the same shape and seed would give other weights.
_GENERATOR = "random-1"


def _shape(name: str, sizes: tuple[int, ...], **more: object) -> ModelSpec:
    hidden_size, layers, heads, kv_heads, head_size, ffn_size, vocab_size = sizes
    settings: dict[str, object] = {
        "norm_epsilon": 1e-5, "rope_theta": 500000.0, "context_size": 8192, "tied": False,
    }  # fmt: skip
    return ModelSpec(
        name=name,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        ffn_size=ffn_size,
        vocab_size=vocab_size,
        **(settings | more),  # type: ignore[arg-type]
    )


def _llama31(factor: float) -> dict[str, object]:
    scaling = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    return {"rope_scaling": scaling, "context_size": 131072}


# hidden, layers, heads, KV heads, head size, feed-forward, vocabulary; from each config.json.
SHAPES = {
    spec.name: spec
    for spec in (
        _shape(
            "tinyllama-1.1b", (2048, 22, 32, 4, 64, 5632, 32000),
            rope_theta=10000.0, context_size=2048,
        ),
        _shape("llama-3.2-1b", (2048, 16, 32, 8, 64, 8192, 128256), tied=True, **_llama31(32.0)),
        _shape("llama-3.2-3b", (3072, 28, 24, 8, 128, 8192, 128256), tied=True, **_llama31(32.0)),
        _shape("llama-3-8b", (4096, 32, 32, 8, 128, 14336, 128256)),
        _shape("llama-3.1-70b", (8192, 80, 64, 8, 128, 28672, 128256), **_llama31(8.0)),
        _shape("llama-3.1-405b", (16384, 126, 128, 8, 128, 53248, 128256), **_llama31(8.0)),
    )
}  # fmt: skip


def open_random(source: str, weights: str | None) -> "RandomModel":
    """Open `random:SHAPE[:SEED]`. Raises ModelError for an unknown shape or a bad seed."""
    shape, _, seed = source.removeprefix(PREFIX).partition(":")
    spec = SHAPES.get(shape)
    if spec is None:
        raise ModelError(f"random shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}")
    if seed and not (seed.isascii() and seed.isdecimal() and int(seed) < 1 << 64):
        raise ModelError(f"random seed {seed!r} is not a whole number of 0 to {(1 << 64) - 1}")
    return RandomModel(spec, int(seed or 0), weights)


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
        if is_norm(name):
            return "f32"
        return self.effective_type(name, self._asked(name) or DEFAULT_WEIGHTS)

    def _cut(self, name: str, kind: str, rows: Span, columns: Span) -> Bytes:
        count = columns[1] - columns[0]
        if is_norm(name):
            return np.ones((rows[1] - rows[0], count), dtype="<f4").view(np.uint8)
        total = self._shape(name)[1]
        scale = 1 / math.sqrt(total)
        if name.endswith((".wo", ".w2")):
            scale /= math.sqrt(2 * self.spec.layers)
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
        return _native.random_slice(
            kind, seed, rows[0], rows[1] - rows[0], columns[0], count, total, scale
        )
