"""Llama against transformers: every scaling of its rope, and biases."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import family_parity
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

ODD = {
    "hidden_size": 45,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "intermediate_size": 77,
    "tie_word_embeddings": True,
}


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **settings}}


CASES = {
    "llama, linear, biases": Case(
        "llama", {**rope("linear", factor=3.0), "attention_bias": True, "mlp_bias": True}
    ),
    "llama, odd sizes, dynamic, tied": Case(
        "llama", {**ODD, **rope("dynamic", factor=2.0)}, shares=(1, 2, 1)
    ),
    "llama, llama3": Case(
        "llama",
        rope(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        nodes=(1, 2),
    ),
    "llama, odd sizes, yarn, tied": Case(
        "llama",
        {**ODD, **rope("yarn", factor=4.0, original_max_position_embeddings=16)},
        shares=(3, 1, 1),
        dtype="bfloat16",
    ),
    "llama, yarn, its numbers given": Case(
        "llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=8.0,
            beta_slow=2.0,
            mscale=0.8,
            mscale_all_dim=0.5,
            truncate=False,
        ),
        nodes=(1, 2),
    ),
    "llama, longrope": Case(
        "llama",
        rope(
            "longrope",
            factor=4.0,
            original_max_position_embeddings=16,
            short_factor=[1.0] * 8,
            long_factor=[1.0 + 0.5 * pair for pair in range(8)],
        ),
        nodes=(1, 2),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))


def test_more_nodes_than_kv_heads(tmp_path: Path) -> None:
    """Query heads of a KV head are divided, and each node has its keys and values."""
    case = Case("llama", {"num_attention_heads": 8, "num_key_value_heads": 2}, nodes=(6,))
    with contextmanager(family_parity.workers)(5) as addresses:
        family_parity.check(case, tmp_path / "model", addresses, 3)
