"""Sampling among the tokens that a constraint allows."""

from __future__ import annotations

import numpy as np

from hearth._native import masked
from hearth.common.allowed import among
from hearth.common.candidates import Tails
from hearth.root.engine.interfaces import Ids, Logits, TokenSampler
from hearth.root.engine.structure.matching import Matcher


class ConstrainedSampler:
    """A sampler of allowed tokens: the others count as impossible before anything is chosen."""

    def __init__(self, inner: TokenSampler, matcher: Matcher, greedy: bool = False) -> None:
        """greedy: `inner` chooses the best token, and nothing is drawn."""
        self._inner = inner
        self._matcher = matcher
        self._greedy = greedy

    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        """Of the inner sampler."""
        return self._inner.draw(ahead)

    def sample(self, logits: Logits, ids: Ids | None = None, tails: Tails | None = None) -> int:
        """An allowed token of f32 [vocabulary] logits, or of candidates that are all allowed.

        Raises HearthError for a constraint that fails, ValueError where no token is allowed.
        """
        if self._greedy and ids is None:
            # Mostly the best token is an allowed one: then no mask is needed.
            best = self._inner.sample(logits)
            if self._matcher.allows(best):
                return best
        mask = self._matcher.mask()
        if ids is not None:
            keep = np.flatnonzero(among(ids, mask))
            if not keep.size:
                raise ValueError("none of the candidates is allowed by the constraint")
            return self._inner.sample(logits[keep], ids[keep], tails)
        if not mask.any():
            raise ValueError("the constraint allows no token of this vocabulary")
        # A row with gaps, not a list of ids: the sampler would sort thousands of these.
        return self._inner.sample(masked(logits, mask, -np.inf))

    def accept(self, token: int) -> None:
        """A token of the answer."""
        self._inner.accept(token)
        self._matcher.accept(token)

    def accept_prompt(self, tokens: Ids) -> None:
        """Tokens of the prompt, which the constraint does not cover."""
        self._inner.accept_prompt(tokens)
