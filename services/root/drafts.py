"""The draft model of a root (--draft): its settings, its memory, and the drafter that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hearth.common.errors import HearthError, Reason
from hearth.converter import Model
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.draft_model import DraftModel
from hearth.root.planning.blueprint import draw
from hearth.root.settings import ClusterSettings, DraftShare


def check(draft: Model, model: Model, tokenizer: Tokenizer, settings: ClusterSettings) -> None:
    """Raises HearthError BAD_SETTING for a draft model that is of no use.

    tokenizer: of the model that it is to draft for.
    """
    if settings.speculate not in ("auto", "draft"):
        problem = f"--draft has no effect with --speculate {settings.speculate}: use auto or draft"
        raise HearthError(Reason.BAD_SETTING, problem)
    other = draft.tokenizer()
    difference = _difference(tokenizer, other)
    if difference:
        raise HearthError(
            Reason.BAD_SETTING,
            f"{draft.spec.name} cannot draft for {model.spec.name}: their vocabularies differ, "
            f"{difference}; choose a smaller model of the same family",
        )


def settings_of(draft: Model, model: Model, settings: ClusterSettings) -> ClusterSettings:
    """The settings of the draft model on the root alone. settings: of the model's cluster."""
    context = settings.context or min(model.spec.context_size, 4096)
    return ClusterSettings(
        threads=settings.threads,
        pin=settings.pin,
        context=min(context, draft.spec.context_size),
        sequences=settings.sequences,
        page_size=settings.page_size,
        max_step_tokens=settings.max_step_tokens,
        name=settings.name,
        speculate="draft",
    )


def share_of(draft: Model, settings: ClusterSettings) -> DraftShare:
    """The draft model's share of the root's memory: weights, all of its KV cache, and states.

    settings: its own.
    """
    blueprint = draw(draft, settings)
    [node] = blueprint.plan(()).nodes
    page_bytes = node.kv_page_bytes(draft.spec, settings.kv_type, settings.page_size)
    room = blueprint.expected_room()
    size = node.weight_bytes + room.pages * page_bytes
    size += room.sequences * node.state_bytes(draft.spec)
    return DraftShare(draft.spec.name, size)


def with_draft(settings: ClusterSettings, model: Model, draft: Model | None) -> ClusterSettings:
    """The settings of a model's cluster whose root runs a draft model too, if there is one."""
    if draft is None:
        return settings
    return replace(settings, draft=share_of(draft, settings_of(draft, model, settings)))


@contextmanager
def running(draft: Model, settings: ClusterSettings, vocab_size: int) -> Iterator[DraftModel]:
    """Load a draft model and run it until the block ends.

    settings: its own. vocab_size: tokens that may be guessed. Raises HearthError.
    """
    cluster = Cluster(draft, settings)
    try:
        limits = cluster.form()
        yield DraftModel(cluster, limits, vocab_size)
    finally:
        cluster.close()


def _difference(left: Tokenizer, right: Tokenizer) -> str:
    """The first difference of two vocabularies, "" for none."""
    if left.vocab_size != right.vocab_size:
        return f"with {right.vocab_size} tokens and {left.vocab_size}"
    names = dict(left.control_ids), dict(right.control_ids)
    for token in range(left.vocab_size):
        if left.token_bytes(token) != right.token_bytes(token):
            return f"token {token} is {right.token_bytes(token)!r} and {left.token_bytes(token)!r}"
    if names[0] != names[1]:
        odd = sorted(set(names[0].items()) ^ set(names[1].items()))[0]
        return f"control token {odd[0]!r} is in one of them only, as {odd[1]}"
    return ""
