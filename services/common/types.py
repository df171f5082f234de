"""The types of weights, syncs and KV caches, norms, activations, lanes, ciphers: name to number.

The only table of the enums of hearth.v1. It does not import protobuf at run time; a test compares
the numbers with protos/hearth/v1/common.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from hearth.v1 import common_pb2

# Elements of a quantized row that share a scale.
BLOCK = 32
# Layers on disk that are in memory at a time, as in the core (native/src/shard/layer_stream.cpp).
DISK_SEATS = 2

_WEIGHT_TYPES = (
    "f32", "f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
    "iq4_nl", "iq4_xs", "mxfp4", "bf16",
)  # fmt: skip
WEIGHT = cast(
    "Mapping[str, common_pb2.WeightType.ValueType]",
    {name: number for number, name in enumerate(_WEIGHT_TYPES, start=1)},
)
# Former names of weight types, in options and in converted models.
WEIGHT_ALIASES = {"q80": "q8_0", "q40": "q4_0"}
# Names that --weights takes: a type for all matrices, or a mix of types (converter/mixes.py).
WEIGHT_CHOICES = (
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m",
    "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs", "mxfp4",
)  # fmt: skip
SYNC = cast("Mapping[str, common_pb2.SyncType.ValueType]", {"f32": 1, "f16": 2, "q80": 3})
KV = cast("Mapping[str, common_pb2.KvType.ValueType]", {"f32": 1, "f16": 2, "q80": 3})
MESH_CIPHER = cast(
    "Mapping[str, common_pb2.MeshCipher.ValueType]",
    {"plain": 1, "aes-256-gcm": 2, "chacha20-poly1305": 3},
)
NORM = cast("Mapping[str, common_pb2.NormKind.ValueType]", {"rms": 1, "layer": 2})
ACTIVATION = cast(
    "Mapping[str, common_pb2.Activation.ValueType]",
    {"silu": 1, "gelu_tanh": 2, "gelu": 3, "relu_squared": 4},
)
ROUTER = cast("Mapping[str, common_pb2.RouterScores.ValueType]", {"softmax": 1, "sigmoid": 2})
LANE = cast("Mapping[str, common_pb2.Lane.ValueType]", {"grpc": 1, "mesh": 2})

Number = TypeVar("Number", bound=int)


def name_of(table: Mapping[str, Number], number: int) -> str | None:
    """The name of a number of `table`; None if it is not in the table."""
    return next((name for name, value in table.items() if value == number), None)
