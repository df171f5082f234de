"""Sampling of tokens from a step's logits, and verification of draft tokens."""

from collections.abc import Iterable

from hearth.root.engine.interfaces import Ids, Logits, TokenSampler
from hearth.root.scheduling.batch import SequenceStep


def sample(
    step: SequenceStep, logits: Logits, ids: Ids | None, sampler: TokenSampler
) -> tuple[int, ...]:
    """New tokens of one sequence: the accepted drafts, then one more.

    logits: f32 [step.outputs, n]; the first row follows the last known token, each other row a
    draft. Tokens are sampled as without drafts, so drafts never change the text. The sampler
    records each of them with `accept`.
    """
    tokens: list[int] = []
    drafts = step.drafts
    for row, values in enumerate(logits):
        token = sampler.sample(values) if ids is None else sampler.sample(values, ids[row])
        sampler.accept(token)
        tokens.append(token)
        if row == len(drafts) or token != drafts[row]:
            break
    return tuple(tokens)


def candidates(wanted: Iterable[int]) -> int:
    """Number of candidates that is enough for all samplers; 0 if one needs whole rows."""
    counts = list(wanted)
    return max(counts) if counts and all(counts) else 0
