"""Mixes of weight types under one name, such as q4_k_m: a type for each tensor.

The choices are llama.cpp's, for files of the same size and quality under the same name. They give
more bits to the tensors that matter most: the head, the values of attention, and the products that
add to the residual stream, there most in the first and the last layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hearth.converter.blocks import AttentionSpec
from hearth.converter.errors import ModelError
from hearth.converter.spec import ModelSpec
from hearth.converter.tensors import TensorSpec
from hearth.converter.weights import PACKED, check_type

# Query heads of a KV head from which on its values are small enough to get more bits.
_LARGE_GROUP = 4


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor's place, for the rules.

    part: as within a layer. number, count: its place among the layers that have such a tensor.
    group: query heads that share a KV head. experts: of its layer's feed-forward; 0: not divided.
    """

    part: str
    number: int
    count: int
    group: int
    experts: int

    @property
    def first_eighth(self) -> bool:
        return self.number < self.count // 8

    @property
    def outer(self) -> bool:
        """True in the first and the last eighth of the layers, and in every third between."""
        eighth = self.count // 8
        return (
            self.number < eighth
            or self.number >= 7 * self.count // 8
            or (self.number - eighth) % 3 == 2
        )


_Rule = Callable[[_Place], str]


def _q2_k(at: _Place) -> str:
    if at.part == "wv":
        return "q4_k" if at.group >= _LARGE_GROUP else "q3_k"
    return "q3_k" if at.part in ("w2", "wo") else "q2_k"


def _q3_k_m(at: _Place) -> str:
    if at.part == "wv":
        return "q5_k" if at.number < 2 else "q4_k"
    if at.part == "w2":
        return "q5_k" if at.number < at.count // 16 else "q4_k"
    return "q4_k" if at.part == "wo" else "q3_k"


def _q3_k_l(at: _Place) -> str:
    return "q5_k" if at.part in ("wv", "w2", "wo") else "q3_k"


def _q4_k_s(at: _Place) -> str:
    if at.part == "wv" and at.number < 4:
        return "q5_k"
    return "q5_k" if at.part == "w2" and at.first_eighth else "q4_k"


def _q4_k_m(at: _Place) -> str:
    return "q6_k" if at.part in ("wv", "w2") and at.outer else "q4_k"


def _q5_k_m(at: _Place) -> str:
    return "q6_k" if at.part in ("wv", "w2") and at.outer else "q5_k"


def _uneven(kind: str) -> _Rule:
    def rule(at: _Place) -> str:
        if at.part == "wv" and at.group >= _LARGE_GROUP:
            return "q5_k"
        return "q5_k" if at.part == "w2" and at.first_eighth else kind

    return rule


def _mxfp4(at: _Place) -> str:
    return "mxfp4" if at.part in ("w1", "w2", "w3") else "q8_0"


# The type of most tensors of a mix, the least type of its head, and its rule.
_MIXES: dict[str, tuple[str, str, _Rule]] = {
    "q2_k": ("q2_k", "q6_k", _q2_k),
    "q3_k_s": ("q3_k", "q6_k", lambda at: "q3_k"),
    "q3_k_m": ("q3_k", "q6_k", _q3_k_m),
    "q3_k_l": ("q3_k", "q6_k", _q3_k_l),
    "q4_k_s": ("q4_k", "q6_k", _q4_k_s),
    "q4_k_m": ("q4_k", "q6_k", _q4_k_m),
    "q5_k_s": ("q5_k", "q6_k", lambda at: "q5_k"),
    "q5_k_m": ("q5_k", "q6_k", _q5_k_m),
    "q6_k": ("q6_k", "q6_k", lambda at: "q6_k"),
    "iq4_nl": ("iq4_nl", "q6_k", _uneven("iq4_nl")),
    "iq4_xs": ("iq4_xs", "q6_k", _uneven("iq4_xs")),
    "mxfp4": ("q8_0", "q8_0", _mxfp4),
}

# Names without _S, _M or _L, as llama.cpp's quantizer reads them.
_SHORT = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
# Names that can be asked for: a type for all matrices, or a mix.
WEIGHTS = (*(name for name in PACKED if name not in _SHORT and name not in _MIXES), *_MIXES)
# Layers of the Llama models of 70 billion parameters, whose values are a small part of all.
_MANY_LAYERS = 80
# Experts of Mixtral, whose attention is a small part of all.
_MIXTRAL = 8
_BELOW_Q5 = ("q2_k", "q3_k", "q4_k", "iq4_nl", "iq4_xs")


def is_mix(name: str) -> bool:
    """True for a mix; false for a type that all matrices have."""
    return name in _MIXES


def check_weights(name: str) -> str:
    """The name of a type or a mix that can be asked for. Raises ModelError for any other."""
    name = _SHORT.get(name, name)
    if is_mix(name):
        return name
    try:
        return check_type(name)
    except ModelError:
        names = ", ".join(WEIGHTS)
        raise ModelError(f"weight type {name!r} is unknown; choose one of {names}") from None


def mixed_type(mix: str, spec: ModelSpec, tensor: TensorSpec) -> str:
    """The type of a matrix in a mix, whether or not its blocks fit the tensor's rows."""
    kind, head, rule = _MIXES[mix]
    if tensor.part == "head" or (tensor.part == "embedding" and spec.tied):
        return head
    if tensor.part == "positions":
        return "f16"
    if tensor.layer < 0:
        return kind
    at = _place(spec, tensor)
    if mix == "mxfp4":
        return rule(at)
    if at.experts == _MIXTRAL:
        if at.part in ("wv", "wk"):
            return "q8_0"
        if at.part == "wo":
            return "q5_k" if kind in _BELOW_Q5 and mix != "q3_k_l" else kind
    found = rule(at)
    if at.part == "wv" and spec.layers == _MANY_LAYERS and found in ("q3_k", "q4_k"):
        return "q5_k"
    return found


def _place(spec: ModelSpec, tensor: TensorSpec) -> _Place:
    layers = [each.layer for each in spec.tensors if each.part == tensor.part]
    block = spec.kinds[spec.kind_of_layer[tensor.layer]]
    return _Place(
        part=tensor.part.removeprefix("experts_"),
        number=layers.index(tensor.layer),
        count=len(layers),
        group=block.mixer.group if isinstance(block.mixer, AttentionSpec) else 1,
        experts=block.experts.count if block.experts is not None else 0,
    )
