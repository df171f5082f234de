"""The types of weights, syncs and KV caches, and the lanes: name to number of hearth.v1.

The one table of them. It imports no protobuf at run time; a test holds the numbers to
protos/hearth/v1/common.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from hearth.v1 import common_pb2

# Numbers of a quantized row that share a scale.
BLOCK = 32

WEIGHT = cast(
    "Mapping[str, common_pb2.WeightType.ValueType]", {"f32": 1, "f16": 2, "q80": 3, "q40": 4}
)
SYNC = cast("Mapping[str, common_pb2.SyncType.ValueType]", {"f32": 1, "f16": 2, "q80": 3})
KV = cast("Mapping[str, common_pb2.KvType.ValueType]", {"f32": 1, "f16": 2, "q80": 3})
LANE = cast("Mapping[str, common_pb2.Lane.ValueType]", {"grpc": 1, "mesh": 2})

Number = TypeVar("Number", bound=int)


def name_of(table: Mapping[str, Number], number: int) -> str | None:
    """The name of a number of `table`; None where it has none."""
    return next((name for name, value in table.items() if value == number), None)
