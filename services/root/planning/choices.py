"""Checks of a cluster's named settings against the model."""

from hearth.common.errors import HearthError, Reason
from hearth.common.types import BLOCK, KV, LANE, SYNC
from hearth.converter import ModelSpec


def check(lane: str, sync_type: str, kv_type: str, spec: ModelSpec) -> None:
    """Raises HearthError INVALID_ARGUMENT for an unknown or unsuitable name."""
    for what, name, known in (
        ("lane", lane, LANE),
        ("sync type", sync_type, SYNC),
        ("KV type", kv_type, KV),
    ):
        if name not in known:
            raise HearthError(
                Reason.INVALID_ARGUMENT, f"unknown {what} {name!r}: use {', '.join(known)}"
            )
    sizes = {size for kind in spec.kinds for size in kind.mixer.cached_sizes}
    unfit = sorted(size for size in sizes if size % BLOCK)
    if kv_type == "q80" and unfit:
        raise HearthError(
            Reason.INVALID_ARGUMENT,
            f"KV type q80 needs a head size that is a multiple of 32; {spec.name} has "
            f"{unfit[0]}: use --kv-type f16",
        )
    if sync_type == "q80" and spec.hidden_size % BLOCK:
        raise HearthError(
            Reason.INVALID_ARGUMENT,
            f"sync type q80 needs a hidden size that is a multiple of 32; {spec.name} has "
            f"{spec.hidden_size}: use --sync-type f16",
        )
