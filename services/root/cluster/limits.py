"""The scheduler's limits."""

from hearth.root.planning.blueprint import Blueprint
from hearth.root.scheduling.batch import Limits


def limits_for(blueprint: Blueprint, pages: int) -> Limits:
    """The limits of a cluster with `pages` of KV cache."""
    settings = blueprint.settings
    return Limits(
        context_size=blueprint.context,
        max_pages=pages,
        page_size=settings.page_size,
        max_step_tokens=settings.max_step_tokens,
        max_running=min(16, settings.max_step_tokens),
    )
