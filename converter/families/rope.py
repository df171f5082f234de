"""Rotary position embeddings: base and scaling, as files give them, to a RopeSpec."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hearth.converter.blocks import RopeSpec
from hearth.converter.errors import ModelError
from hearth.converter.shown import shown
from hearth.converter.spec import check_positive, check_size

KINDS = ("linear", "dynamic", "llama3", "yarn", "longrope")

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary frequencies for contexts longer than the model was trained on.

    kind "linear" divides every frequency by `factor`. "dynamic" changes nothing within
    `original_context`; beyond it the base grows with each sequence, which Hearth does not do.
    "llama3" divides only the slow ones, with a ramp between `original_context /
    low_freq_factor` and `original_context / high_freq_factor` positions of wavelength (Llama 3.1).
    "yarn" (Peng et al., 2023) has its ramp between beta_fast and beta_slow turns in the original
    context. "longrope" (Ding et al., 2024) divides each frequency by a factor of its own.

    magnitude: factor of cos and sin.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    # Ends of YaRN's ramp at whole pairs.
    truncate: bool = True
    magnitude: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelError(
                f"rope scaling {shown(self.kind)} is not supported; Hearth reads {', '.join(KINDS)}"
            )
        for name in ("factor", "low_freq_factor", "high_freq_factor", "magnitude"):
            _check_factor(f"rope scaling {name}", getattr(self, name))
        for name in ("beta_fast", "beta_slow"):
            _check_factor(f"rope scaling {name}", getattr(self, name))
        for name in ("short_factors", "long_factors"):
            for value in getattr(self, name):
                _check_factor(f"a number of rope scaling {name}", value)
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ModelError(
                f"rope scaling high_freq_factor {self.high_freq_factor} must be above "
                f"low_freq_factor {self.low_freq_factor}"
            )
        try:
            check_size("context_size", self.original_context)
        except ModelError as error:
            raise ModelError(f"rope scaling original context: {error}") from None


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor of cos and sin for a context `factor` times as long. Raises ModelError."""
    magnitude = 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
    check_positive(f"the magnitude of yarn with mscale {mscale:g} and factor {factor:g}", magnitude)
    return magnitude


def longrope_magnitude(factor: float, original_context: int) -> float:
    """LongRoPE's factor of cos and sin."""
    if factor <= 1 or original_context <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original_context))


def make_rope(
    size: int,
    theta: float,
    scaling: RopeScaling | None = None,
    factors: tuple[float, ...] | None = None,
) -> RopeSpec:
    """A rotary position embedding of `size` elements of a head.

    theta: the base; factors: divisors of each frequency besides `scaling`. Raises ModelError.
    """
    check_size("head_size", size)
    if size < 2 or size % 2:
        raise ModelError(f"rotary positions of {size} elements need an even number of at least 2")
    if not (math.isfinite(theta) and 1 <= theta <= 1e15):
        raise ModelError(f"rope_theta is {theta}; it must be 1 to 1e15")
    frequencies = theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    if factors is not None:
        _check_factors("rope factors", factors, size)
    divisor = 1.0 if factors is None else np.asarray(factors, dtype=np.float64)
    if scaling is not None and scaling.kind == "longrope":
        return _longrope(frequencies, scaling)
    scaled = _scaled(frequencies, size, theta, scaling) / divisor
    if scaling is None:
        return RopeSpec(_as_f32(scaled))
    bound = scaling.original_context if scaling.kind == "dynamic" else 0
    return RopeSpec(_as_f32(scaled), scaling.magnitude, most_positions=bound)


def _scaled(frequencies: F64, size: int, theta: float, scaling: RopeScaling | None) -> F64:
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        # 1 where the wavelength is short (kept), 0 where it is long (divided), else between.
        keep = np.clip((scaling.original_context / wavelengths - low) / (high - low), 0.0, 1.0)
        return keep * frequencies + (1 - keep) * frequencies / scaling.factor
    first, last = (
        _pair_of_turns(turns, size, theta, scaling.original_context)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    pairs = np.arange(size // 2)
    divided = np.clip((pairs - first) / max(last - first, 0.001), 0.0, 1.0)
    mixed: F64 = (1 - divided) * frequencies + divided * frequencies / scaling.factor
    return mixed


def _pair_of_turns(turns: float, size: int, theta: float, context: int) -> float:
    """The pair (a fraction) that makes so many turns in the context."""
    if theta <= 1:
        raise ModelError(f"rope_theta is {theta}; yarn needs one above 1")
    return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _longrope(frequencies: F64, scaling: RopeScaling) -> RopeSpec:
    size = 2 * len(frequencies)
    for name in ("short_factors", "long_factors"):
        _check_factors(f"rope scaling {name}", getattr(scaling, name), size)
    short, long = (
        _as_f32(frequencies / np.asarray(factors, dtype=np.float64))
        for factors in (scaling.short_factors, scaling.long_factors)
    )
    return RopeSpec(short, scaling.magnitude, long, scaling.original_context)


def _as_f32(values: F64) -> tuple[float, ...]:
    return tuple(float(value) for value in values.astype(np.float32))


def _check_factor(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0 < value <= 1e6):
        raise ModelError(f"{name} is {value}; it must be above 0, at most 1e6")


def _check_factors(name: str, factors: tuple[float, ...], size: int) -> None:
    if len(factors) != size // 2:
        raise ModelError(f"{len(factors)} {name} for a head of {size}; there must be {size // 2}")
    if not all(math.isfinite(f) and 0 < f <= 1e6 for f in factors):
        raise ModelError("a rope factor is not a number above 0, at most 1e6")
