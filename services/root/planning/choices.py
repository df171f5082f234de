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


def check_context(context: int, spec: ModelSpec) -> None:
    """Raises HearthError BAD_SETTING for a context beyond the positions that the model can have.

    Beyond the context it was trained for, a model with other rotary positions makes poor text only.
    """
    bounds = [rope.most_positions for rope in spec.ropes if rope.most_positions]
    if bounds and context > min(bounds):
        raise HearthError(
            Reason.BAD_SETTING,
            f"--context {context} is more than the {min(bounds)} positions of {spec.name}: its "
            "rope scaling is dynamic, and beyond them frequencies would change with the length of "
            f"each sequence, which Hearth does not compute; give --context {min(bounds)} or less",
        )
    if spec.learned_positions and context > spec.learned_positions:
        raise HearthError(
            Reason.BAD_SETTING,
            f"--context {context} is more than the {spec.learned_positions} positions that "
            f"{spec.name} has learned; give --context {spec.learned_positions} or less",
        )
