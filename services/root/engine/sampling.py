"""From the logits of a step to tokens: sampling, and verifying draft tokens."""

from collections.abc import Iterable

from hearth.root.engine.interfaces import Ids, Logits, TokenSampler
from hearth.root.scheduling.batch import SequenceStep


def sample(
    step: SequenceStep, logits: Logits, ids: Ids | None, sampler: TokenSampler
) -> tuple[int, ...]:
    """The new tokens of one sequence: the drafts that it would have sampled, then one more.

    logits: f32 [step.outputs, n], the first row after the last known token, the others after each
    draft. Every token is drawn as it would be without drafts, so that drafts change no text. Each
    is accepted by the sampler.
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
    """Number of best tokens that is enough for all samplers; 0 where one needs whole rows."""
    counts = list(wanted)
    return max(counts) if counts and all(counts) else 0
