"""Sampling of tokens from a step's logits, and verification of draft tokens."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from hearth.common.candidates import Tails
from hearth.root.engine.interfaces import Ids, Logits, TokenSampler
from hearth.root.engine.mailbox import TokenScore
from hearth.root.engine.structure.matching import Matcher
from hearth.root.scheduling.batch import SequenceStep


class Following:
    """A sampler of known tokens, and of another's after these."""

    def __init__(self, follow: Sequence[int], inner: TokenSampler) -> None:
        self._left = deque(follow)
        self._inner = inner

    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        """Of the inner sampler, which draws nothing for the known tokens."""
        return self._inner.draw(max(0, ahead - len(self._left)))

    def sample(self, logits: Logits, ids: Ids | None = None, tails: Tails | None = None) -> int:
        """The next known token, else one that `inner` chooses."""
        return self._left[0] if self._left else self._inner.sample(logits, ids, tails)

    def accept(self, token: int) -> None:
        """A token of the sequence; the known ones are not part of the answer."""
        if self._left:
            self._left.popleft()
        else:
            self._inner.accept(token)

    def accept_prompt(self, tokens: Ids) -> None:
        """Tokens of the prompt, with the known ones."""
        self._inner.accept_prompt(tokens)


def sample(
    step: SequenceStep,
    logits: Logits,
    ids: Ids | None,
    sampler: TokenSampler,
    matcher: Matcher | None = None,
    tails: Mapping[int, Tails] = MappingProxyType({}),
) -> tuple[int, ...]:
    """New tokens of one sequence: the accepted drafts, then one more.

    logits: f32 [step.outputs, n]; the first row follows the last known token, each other row a
    draft. Tokens are sampled as without drafts, so drafts never change the text. The sampler
    records each of them with `accept`. Nothing follows the last token of a matcher's constraint.
    tails: by row, of those with a nucleus.
    """
    tokens: list[int] = []
    drafts = step.drafts
    for row, values in enumerate(logits):
        if ids is None:
            token = sampler.sample(values)
        else:
            token = sampler.sample(values, ids[row], tails.get(row))
        sampler.accept(token)
        tokens.append(token)
        complete = matcher is not None and matcher.length is not None
        if complete or row == len(drafts) or token != drafts[row]:
            break
    return tuple(tokens)


def scores(tokens: Iterable[int], logits: Logits, top: int) -> list[TokenScore]:
    """Log probabilities of sampled tokens, each with the `top` best of its row.

    logits: f32 [at least as many rows as tokens, vocabulary], whole rows.
    """
    found: list[TokenScore] = []
    for token, row in zip(tokens, logits, strict=False):
        values = row.astype(np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        count = min(top, len(values))
        best = np.argpartition(-values, count - 1)[:count] if count else np.empty(0, np.int64)
        # Equal ones by the lower id, as the sampler chooses.
        ordered = sorted((-float(values[id]), int(id)) for id in best)
        chosen = tuple((id, -negative) for negative, id in ordered)
        found.append(TokenScore(token, float(values[token]), chosen))
    return found


def candidates(wanted: Iterable[int]) -> int:
    """Number of candidates that is enough for all samplers; 0 if one needs whole rows."""
    counts = list(wanted)
    return max(counts) if counts and all(counts) else 0
