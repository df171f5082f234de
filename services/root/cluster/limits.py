"""The scheduler's limits."""

from hearth.converter.blocks import GatedDeltaSpec
from hearth.root.planning.blueprint import Blueprint
from hearth.root.planning.memory import Room
from hearth.root.scheduling.batch import Limits


def limits_for(blueprint: Blueprint, room: Room) -> Limits:
    """The limits of a cluster with this room."""
    settings = blueprint.settings
    kinds = blueprint.model.spec.kinds
    return Limits(
        context_size=blueprint.context,
        max_pages=room.pages,
        page_size=settings.page_size,
        max_step_tokens=settings.max_step_tokens,
        max_running=room.sequences,
        drafts=not any(isinstance(kind.mixer, GatedDeltaSpec) for kind in kinds),
        prefix_cache=settings.prefix_cache,
    )
