"""Logits of every architecture's GGUF file against llama.cpp's, on 1 to 3 nodes.

llama.cpp computed them from the same files (tests/known/make_gguf_families.py). It rounds some
numbers more coarsely than a float: a table of GELU in f16, for one. So a difference of 2e-3 of the
logits' spread is allowed, or what a case says. That hides no wrong rotation, scale or cut: each
changes them by more than a tenth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import family_parity
import gguf_families
import numpy as np
import numpy.typing as npt
import perplexity
import pytest

from hearth.converter import ModelError, open_model
from hearth.converter.families import families
from hearth.root.planning.planner import most_nodes

SUPPORTED = {each for family in families() for each in family.architectures}
SHARES = ((1.0,), (2.0, 1.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    yield from family_parity.workers()


@pytest.fixture(scope="module")
def known() -> Mapping[str, npt.NDArray[np.float32]]:
    with np.load(gguf_families.KNOWN) as file:
        return dict(file)


def test_every_case_has_an_answer(known: Mapping[str, npt.NDArray[np.float32]]) -> None:
    assert set(known) == set(gguf_families.CASES)


@pytest.mark.parametrize("name", gguf_families.CASES)
def test_logits_of_llama_cpp(
    known: Mapping[str, npt.NDArray[np.float32]],
    addresses: list[str],
    tmp_path: Path,
    name: str,
) -> None:
    path = tmp_path / "model.gguf"
    ids = gguf_families.write(gguf_families.CASES[name], path)
    if gguf_families.CASES[name].architecture not in SUPPORTED:
        with pytest.raises(ModelError, match="is not supported; Hearth runs llama"):
            open_model(str(path))
        return
    expected = known[name]
    spread = expected.std()
    assert spread > 0.5
    with open_model(str(path)) as model:
        most = most_nodes(model.spec)  # the delta rule's has two key heads
    assert most > 1
    for shares in SHARES[:most]:
        with perplexity.formed(
            str(path), addresses[: len(shares) - 1], "f32", context=32, page_size=8, shares=shares
        ) as formed:
            found = perplexity.logits_of(*formed, ids)[:, :: gguf_families.EVERY]
        difference = float(np.abs(found - expected).max() / spread)
        print(f"{name}, {len(shares)} nodes: {difference:.1e}")
        assert difference < gguf_families.CASES[name].tolerance, f"{len(shares)} nodes"
