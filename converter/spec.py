"""A model's shape: the numbers that decide which tensors it has, how large each is, how it is cut.

Holds no weights and reads no file; `hf_config.py` and the readers make it from what files say.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hearth.converter.blocks import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    RopeSpec,
    attention_scale,
)
from hearth.converter.errors import ModelError
from hearth.converter.tensors import TensorSpec, model_tensors

ARCHITECTURES = ("llama",)

# Upper limits on what a file may claim, checked before anything is allocated. Each is several times
# what the largest published model has.
_LIMITS = {
    "hidden_size": 1 << 17,
    "layers": 1024,
    "heads": 2048,
    "kv_heads": 2048,
    "head_size": 1024,
    "ffn_size": 1 << 20,
    "vocab_size": 1 << 22,
    "context_size": 1 << 28,
}


@dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary frequencies for contexts longer than the model was trained on.

    kind "linear" divides every frequency by `factor`. kind "llama3" divides only the slow ones,
    with a ramp between `original_context / low_freq_factor` and `original_context /
    high_freq_factor` positions of wavelength (Llama 3.1; transformers' `rope_type: llama3`).
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ModelError(
                f"rope scaling {self.kind!r} is not supported; Hearth reads 'linear' and 'llama3'"
            )
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value <= 1e6):
                raise ModelError(f"rope scaling {name} is {value}; it must be above 0, at most 1e6")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ModelError(
                f"rope scaling high_freq_factor {self.high_freq_factor} must be above "
                f"low_freq_factor {self.low_freq_factor}"
            )
        if not 1 <= self.original_context <= _LIMITS["context_size"]:
            raise ModelError(
                f"rope scaling original context is {self.original_context}; it must be 1 to "
                f"{_LIMITS['context_size']}"
            )


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a model. Sizes are counts of numbers (not bytes), `context_size` is in tokens.

    Validates itself: a spec that exists has sane, mutually consistent numbers.

    Raises:
        ModelError: a number is out of range, or two do not fit each other.
    """

    name: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    vocab_size: int
    norm_epsilon: float
    rope_theta: float
    context_size: int
    tied: bool
    rope_scaling: RopeScaling | None = None
    rope_factors: tuple[float, ...] | None = None
    architecture: str = "llama"
    # "rms" or "layer": of all norms.
    norm: str = "rms"
    embedding_scale: float = 1.0
    # Rows of learned positions, which are added to the embedding; 0: none.
    learned_positions: int = 0
    head_bias: bool = False
    # Logits are multiplied by logit_scale, and then capped as AttentionSpec.softcap says.
    logit_scale: float = 1.0
    logit_softcap: float = 0.0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ModelError(
                f"architecture {self.architecture!r} is not supported; Hearth runs "
                f"{', '.join(ARCHITECTURES)}"
            )
        for field, limit in _LIMITS.items():
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise ModelError(f"{field} is {value!r}; it must be a whole number, 1 to {limit}")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"{self.heads} heads cannot be shared equally by {self.kv_heads} KV heads"
            )
        if self.head_size % 2:
            raise ModelError(f"head_size is {self.head_size}; rotary positions need an even number")
        if not (math.isfinite(self.norm_epsilon) and 0 < self.norm_epsilon < 1):
            raise ModelError(f"norm_epsilon is {self.norm_epsilon}; it must be between 0 and 1")
        if not (math.isfinite(self.rope_theta) and 1 <= self.rope_theta <= 1e15):
            raise ModelError(f"rope_theta is {self.rope_theta}; it must be 1 to 1e15")
        if self.rope_factors is not None:
            if len(self.rope_factors) != self.head_size // 2:
                raise ModelError(
                    f"{len(self.rope_factors)} rope factors for a head of {self.head_size}; there "
                    f"must be {self.head_size // 2}"
                )
            if not all(math.isfinite(f) and 0 < f <= 1e6 for f in self.rope_factors):
                raise ModelError("a rope factor is not a number above 0, at most 1e6")

    @property
    def parameters(self) -> int:
        """The model's count of numbers; a tied head is not counted twice."""
        return sum(math.prod(self.tensor_shape(name)) for name in self.tensor_names())

    def rope_frequencies(self) -> npt.NDArray[np.float32]:
        """Radians per position of each rotary pair, f32 [head_size / 2], scaling applied."""
        exponents = np.arange(0, self.head_size, 2, dtype=np.float64) / self.head_size
        frequencies = self.rope_theta**-exponents
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "linear":
            frequencies = frequencies / scaling.factor
        elif scaling is not None:
            wavelengths = 2 * math.pi / frequencies
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            # 1 where the wavelength is short (kept), 0 where it is long (divided), else between.
            keep = np.clip((scaling.original_context / wavelengths - low) / (high - low), 0.0, 1.0)
            frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
        if self.rope_factors is not None:
            frequencies = frequencies / np.asarray(self.rope_factors, dtype=np.float64)
        return frequencies.astype(np.float32)

    @cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of a forward pass, in its order: shapes and cuts follow from this table."""
        return tuple(model_tensors(self))

    @cached_property
    def kinds(self) -> tuple[BlockSpec, ...]:
        """The kinds of blocks."""
        attention = AttentionSpec(
            heads=self.heads,
            kv_heads=self.kv_heads,
            key_size=self.head_size,
            value_size=self.head_size,
            scale=attention_scale(self.head_size),
            rope=0,
        )
        return (BlockSpec(attention, FeedForwardSpec(self.ffn_size)),)

    @cached_property
    def kind_of_layer(self) -> tuple[int, ...]:
        """Index in `kinds` of each layer."""
        return (0,) * self.layers

    @cached_property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The rotary position embeddings of the blocks."""
        return (RopeSpec(tuple(self.rope_frequencies().tolist())),)

    def tensor_names(self) -> list[str]:
        """Every tensor of the model's files, in the order of a forward pass.

        A tied model has no `head`.
        """
        return list(self._shapes)

    def tensor_shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a tensor of the model's files.

        Raises:
            KeyError: the model has no tensor of that name.
        """
        return self._shapes[name]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        return {tensor.name: tensor.shape for tensor in self.tensors if not tensor.stored_as}


_VECTORS = {"norm", "bq", "bk", "bv", "bo", "b1", "b2", "b3", "sinks", "head_bias", "bias"}


def is_norm(name: str) -> bool:
    """True for a vector, such as the weight of a norm: always f32, of one row."""
    part = name.rpartition(".")[2]
    return part in _VECTORS or part.endswith("_norm")
