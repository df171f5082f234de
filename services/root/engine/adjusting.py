"""Changes of a request to its logits: a bias of tokens, and penalties for tokens of the answer.

OpenAI's definitions: a token's logit loses the presence penalty once it is in the answer, and the
frequency penalty for each time that it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hearth.common.candidates import Tails
from hearth.root.engine.interfaces import Ids, Logits, TokenSampler
from hearth.root.engine.params import Sampling


class AdjustedSampler:
    """A sampler of adjusted logits. Needs whole rows: a bias may make any token the best."""

    def __init__(self, inner: TokenSampler, sampling: Sampling) -> None:
        self._inner = inner
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        # Place of each adjusted token in the arrays, which grow.
        self._places: dict[int, int] = {}
        self._tokens: npt.NDArray[np.int64] = np.empty(16, np.int64)
        self._amounts: Logits = np.zeros(16, np.float32)
        self._made: set[int] = set()
        for token, bias in sampling.logit_bias:
            self._add(token, bias)

    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        """Of the inner sampler."""
        return self._inner.draw(ahead)

    def sample(self, logits: Logits, ids: Ids | None = None, tails: Tails | None = None) -> int:
        """A token of f32 [vocabulary] logits. Raises ValueError for candidates."""
        if ids is not None:
            raise ValueError("adjusted logits need whole rows, not candidates")
        count = len(self._places)
        adjusted = logits.copy()
        adjusted[self._tokens[:count]] += self._amounts[:count]
        return self._inner.sample(adjusted)

    def accept(self, token: int) -> None:
        """A token of the answer."""
        self._inner.accept(token)
        if self._presence or self._frequency:
            self._add(token, -self._frequency)
            if token not in self._made:
                self._made.add(token)
                self._add(token, -self._presence)

    def accept_prompt(self, tokens: Ids) -> None:
        """Tokens of the prompt, which these penalties leave alone."""
        self._inner.accept_prompt(tokens)

    def _add(self, token: int, amount: float) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.empty_like(self._tokens)))
            self._amounts = np.concatenate((self._amounts, np.zeros_like(self._amounts)))
        self._tokens[place] = token
        self._amounts[place] += amount
