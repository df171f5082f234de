"""The 200 greedy steps of stories260k, through the command, are those of transformers.

A trained model whose text depends on every number it computes with: one wrong cut, rotation or sync
and the words change. The reference computes in float32, and so do these runs (weights, KV cache and
syncs); summing in another order over 1 to 4 nodes moves no step of it to another token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import known_answers
import numpy as np
import perplexity
import pytest
from harness import WorkerProcess, hearth


@pytest.fixture(scope="module")
def stories(testdata: Path) -> Path:
    """The folder of the model, which is read from the test data."""
    return (testdata / "stories260k/stories260K.gguf").parent


@pytest.fixture(scope="module")
def greedy_ids() -> list[int]:
    ids, _ = known_answers.read_stories260k()
    assert len(ids) == 200
    return ids


def run(stories: Path, *options: str, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """The object that `hearth generate --json` prints: 200 steps from an empty prompt.

    The file states a context of 128, shorter than the reference's run.
    """
    arguments = ["generate", "--model", str(stories / "stories260K.gguf"), "--json"]
    arguments += ["--weights", "f32", "--kv-type", "f32", "--sync-type", "f32", "--context", "512"]
    arguments += ["--prompt", "", "--max-tokens", "200", "--threads", "1", *options]
    ran = hearth(*arguments, environ=environ or {})
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


@pytest.mark.parametrize(
    ("nodes", "lane"), [(1, "mesh"), (2, "mesh"), (3, "mesh"), (4, "mesh"), (3, "grpc")]
)
def test_200_greedy_steps(stories: Path, greedy_ids: list[int], nodes: int, lane: str) -> None:
    answer = run(stories, "--nodes", str(nodes), "--lane", lane)
    assert answer["token_ids"] == greedy_ids
    assert answer["text"] == known_answers.read_stories260k()[1]
    assert (answer["finish_reason"], answer["prompt_tokens"]) == ("length", 1)


@pytest.mark.parametrize("shares", ["3,1", "1,2,1"])
def test_unequal_shares(stories: Path, greedy_ids: list[int], shares: str) -> None:
    nodes = str(shares.count(",") + 1)
    assert run(stories, "--nodes", nodes, "--shares", shares)["token_ids"] == greedy_ids


@pytest.mark.parametrize("nodes", [1, 2])
def test_scalar_kernels(stories: Path, greedy_ids: list[int], nodes: int) -> None:
    scalar = {"HEARTH_INSTRUCTION_SET": "scalar"}
    assert run(stories, "--nodes", str(nodes), environ=scalar)["token_ids"] == greedy_ids


def test_a_prompt_in_chunks_goes_on_the_same(stories: Path, greedy_ids: list[int]) -> None:
    """The first paragraph as a prompt, in steps of 7 rows, goes on with the second."""
    text = known_answers.read_stories260k()[1]
    head = text[: text.index("Lily's mom")]
    answer = run(stories, "--nodes", "2", "--prompt", head, "--max-step-tokens", "7")
    made = answer["prompt_tokens"] - 1  # the prompt begins with BOS
    assert made == greedy_ids.index(13) + 1  # up to the first line's end
    assert answer["token_ids"][: 200 - made] == greedy_ids[made:]


@pytest.mark.parametrize(
    ("sync_type", "error"),
    # Rounding to f16 errs by 2^-11 of a value, to q80 by 1/254 of the largest of 32.
    [("f16", 0.001), ("q80", 0.02)],
)
def test_rounded_syncs_change_little(
    stories: Path,
    greedy_ids: list[int],
    start_worker: Callable[..., WorkerProcess],
    sync_type: str,
    error: float,
    record_property: Callable[[str, object], None],
) -> None:
    """Ten roundings on the way (two for each of 5 layers) add up as errors of random sign do.

    Compared are all logits over the expected text, not one greedy run, in which a single near tie
    would decide everything after it.
    """
    worker = start_worker()
    model = str(stories / "stories260K.gguf")
    ids = [1, *greedy_ids]
    rows = []
    for kind in ("f32", sync_type):
        with perplexity.formed(model, [worker.address], "f32", context=512, sync_type=kind) as on:
            rows.append(perplexity.logits_of(*on, ids))
    exact, rounded = rows
    relative = float(np.sqrt(((rounded - exact) ** 2).mean() / exact.var()))
    agree = float((rounded.argmax(axis=1) == exact.argmax(axis=1)).mean())
    record_property("relative_error", relative)
    record_property("same_best_token", agree)
    print(
        f"{sync_type}: logits differ by {relative:.5f} of their spread, best token same {agree:.3f}"
    )
    assert 0 < relative < error
    assert agree > 0.98
    assert exact[:-1].argmax(axis=1).tolist() == greedy_ids
