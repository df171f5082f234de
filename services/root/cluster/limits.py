"""The scheduler's limits."""

from hearth import _native
from hearth.converter.blocks import GatedDeltaSpec
from hearth.converter.spec import ModelSpec
from hearth.root.planning.blueprint import Blueprint
from hearth.root.planning.memory import Room
from hearth.root.scheduling.batch import MOST_DRAFTS, Limits

# Each is as large as the state of a running sequence.
_MOST_SNAPSHOTS = 4


def limits_for(blueprint: Blueprint, room: Room, stages: int = 1, *, gpus: bool = False) -> Limits:
    """The limits of a cluster with this room, and so many stages. gpus: some node is one."""
    settings = blueprint.settings
    recurrent = is_recurrent(blueprint.model.spec)
    snapshots = _snapshots(room.sequences) if recurrent and settings.prefix_cache else 0
    return Limits(
        context_size=blueprint.context,
        max_pages=room.pages,
        page_size=settings.page_size,
        max_step_tokens=settings.max_step_tokens,
        max_running=room.sequences - snapshots,
        stateful=recurrent,
        # A recurrent state on a GPU cannot go back.
        most_drafts=_drafts("off" if gpus else settings.speculate) if recurrent else MOST_DRAFTS,
        prefix_cache=settings.prefix_cache,
        snapshots=snapshots,
        batches=stages,
    )


def is_recurrent(spec: ModelSpec) -> bool:
    """True if a sequence has a state that its pages do not hold."""
    return any(isinstance(kind.mixer, GatedDeltaSpec) for kind in spec.kinds)


def _drafts(speculate: str) -> int:
    """Drafts behind which a state can go back; 0 where there are none, to save its memory."""
    return 0 if speculate == "off" else _native.MOST_UNDO


def _snapshots(states: int) -> int:
    """Snapshots among the states of recurrent mixers that there is room for: a third, 4 at most."""
    return min(_MOST_SNAPSHOTS, states // 3)
