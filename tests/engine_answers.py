"""Greedy answers of an engine, and what the prefix cache had of their prompts."""

from __future__ import annotations

from collections.abc import Sequence

from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done
from hearth.root.engine.params import GenerateParams

NEW_TOKENS = 24


def answer(engine: Engine, ids: Sequence[int], cache: bool = True) -> tuple[list[int], int]:
    """The greedy answer, and the number of cached tokens of the prompt."""
    params = GenerateParams(tuple(ids), NEW_TOKENS, ignore_eos=True, prefix_cache=cache)
    tokens: list[int] = []
    for event in engine.generate(params):
        if isinstance(event, Delta):
            tokens += event.token_ids
        elif isinstance(event, Done):
            return tokens, event.usage.cached_tokens
    raise AssertionError("the answer has no end")
