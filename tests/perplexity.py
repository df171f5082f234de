"""A cluster's logits at every position of a given text, and their perplexity.

The text is fed token by token; nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from hearth.converter import open_model
from hearth.root.cluster.cluster import Cluster
from hearth.root.scheduling.batch import Batch, Limits, SequenceStep
from hearth.root.settings import ClusterSettings

F32 = npt.NDArray[np.float32]


@contextmanager
def formed(
    source: str,
    addresses: Sequence[str] = (),
    weights: str | None = None,
    **settings: object,
) -> Iterator[tuple[Cluster, Limits]]:
    """A cluster that serves model `source` on this process and the workers at `addresses`."""
    given = {"threads": 1, "kv_type": "f32", "sequences": 1} | settings
    with open_model(source, weights) as model:
        cluster = Cluster(
            model,
            ClusterSettings(workers=tuple(addresses), **given),  # type: ignore[arg-type]
        )
        try:
            yield cluster, cluster.form()
        finally:
            cluster.close()


def step(limits: Limits, sequences: Sequence[tuple[Sequence[int], int, Sequence[int]]]) -> Batch:
    """A step of (pages, position, tokens) sequences that wants the logits of every row.

    `pages` may hold more than the step needs yet. A sequence that goes on has the pages of its
    positions so far from earlier steps, under the same number.
    """
    parts = []
    for number, (pages, position, tokens) in enumerate(sequences):
        count = -(-(position + len(tokens)) // limits.page_size)
        assert count <= len(pages)
        held = -(-position // limits.page_size)
        table = tuple(pages[held:count])
        parts.append(SequenceStep(number, tuple(tokens), position, held, table, len(tokens)))
    rows = tuple(token for part in parts for token in part.tokens)
    decode = sum(len(part.tokens) == 1 for part in parts)
    begins = not any(position for _, position, _ in sequences)
    return Batch(tuple(parts), rows, tuple(range(len(rows))), decode, reset=begins)


def logits_of(cluster: Cluster, limits: Limits, ids: Sequence[int]) -> F32:
    """Logits after each of `ids`, float32 [len(ids), vocabulary], in steps as long as may be."""
    length, pages = limits.max_step_tokens, range(limits.max_pages)
    return np.concatenate(
        [
            cluster.submit(step(limits, [(pages, at, ids[at : at + length])])).result().logits
            for at in range(0, len(ids), length)
        ]
    )


def perplexity(cluster: Cluster, limits: Limits, texts: Sequence[Sequence[int]]) -> float:
    """exp of the mean loss of the tokens of `texts`, each text after the first of its own tokens.

    Every text stands alone; what is beyond the context is left out.
    """
    room = min(limits.context_size, limits.max_pages * limits.page_size)
    total, count = 0.0, 0
    for text in texts:
        ids = text[: room + 1]
        rows = logits_of(cluster, limits, ids[:-1]).astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        losses = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), ids[1:]]
        total += float(losses.sum())
        count += len(rows)
    return math.exp(total / count)
