"""Pooling of hidden states, and the pooling that a model's files name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter.pooling import Pooling, pooling_of_directory, pooling_of_gguf
from hearth.root.engine.pooling import Pooler

MODULES = [
    {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
    for index, (path, kind) in enumerate(
        [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    )
]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.data())
def test_rows_that_come_in_chunks(counts: list[int], seed: int, data: st.DataObject) -> None:
    rows = np.random.default_rng(seed).normal(size=(sum(counts), 5)).astype(np.float32)
    wanted = {"mean": rows.mean(axis=0, dtype=np.float64), "cls": rows[0], "last": rows[-1]}
    # A sequence whose cluster was lost is computed again, from its beginning.
    lost = data.draw(st.integers(0, len(counts)))
    for kind, vector in wanted.items():
        pooler = Pooler(kind)
        for some in (counts[:lost], counts):
            begin = 0
            for count in some:
                pooler.add(begin, rows[begin : begin + count])
                begin += count
        assert pooler.vector().dtype == np.float32
        np.testing.assert_allclose(pooler.vector(), vector, atol=1e-6)


def test_a_gap_is_an_error() -> None:
    pooler = Pooler("mean")
    pooler.add(0, np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="position 3 came after 2"):
        pooler.add(3, np.zeros((1, 3), np.float32))


def directory(tmp_path: Path, modules: Any, config: Any) -> Path:
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir(exist_ok=True)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_lasttoken", "last"),
    ],
)
def test_modules_of_sentence_transformers(tmp_path: Path, mode: str, kind: str) -> None:
    assert pooling_of_directory(tmp_path) == Pooling()
    config = {"word_embedding_dimension": 8, "pooling_mode_max_tokens": False, mode: True}
    assert pooling_of_directory(directory(tmp_path, MODULES, config)) == Pooling(kind)


@pytest.mark.parametrize(
    ("modules", "config", "problem"),
    [
        ({}, {}, "not a list"),
        ([{"type": "x.Dense", "path": "2_Dense"}], {}, "'Dense'"),
        ([3], {}, "module ''"),
        ([{"type": "x.Pooling", "path": "../elsewhere"}], {}, "not a directory of it"),
        ([{"type": "x.Pooling"}], {}, "not a directory of it"),
        (MODULES, {}, "its pooling is none"),
        (MODULES, {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (
            MODULES,
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "pooling_mode_cls_token",
        ),
        ([MODULES[0]] * 17, {}, "at most 16"),
    ],
)
def test_modules_that_hearth_lacks(tmp_path: Path, modules: Any, config: Any, problem: str) -> None:
    found = pooling_of_directory(directory(tmp_path, modules, config))
    assert found.kind == ""
    assert problem in found.problem


def test_a_damaged_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[")
    assert "not valid JSON" in pooling_of_directory(tmp_path).problem


def test_types_of_gguf() -> None:
    kinds = [pooling_of_gguf(value).kind for value in (None, 0, 1, 2, 3)]
    assert kinds == ["", "", "mean", "cls", "last"]
    assert "4" in pooling_of_gguf(4).problem  # a reranker
    assert pooling_of_gguf("mean").problem
