"""Vectors of texts against transformers' last hidden states, on 1 to 3 nodes."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import family_parity
import numpy as np
import pytest
from family_parity import Case

from hearth.converter import open_model
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.api.frontend import Frontend
from hearth.root.api.prompt import TokenIds
from hearth.root.app import core
from hearth.root.settings import ClusterSettings

pytestmark = pytest.mark.parity

LARGEST_DIFFERENCE = 1e-4
CASES = {
    "llama": Case("llama", {}),
    "qwen3, odd sizes, tied": Case(
        "qwen3",
        {
            "hidden_size": 45,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 77,
            "tie_word_embeddings": True,
        },
    ),
    # A layer norm with a bias, and one with an offset of one.
    "gpt2": Case("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64}),
    "gemma2": Case("gemma2", {"query_pre_attn_scalar": 16}),
}


@pytest.mark.parametrize("name", CASES)
def test_vectors(name: str, addresses: Sequence[str], tmp_path: Path) -> None:
    reference = family_parity.make_reference(CASES[name], tmp_path / "model", len(name))
    import torch

    hidden = []
    with torch.no_grad():
        for ids in reference.texts:
            states = reference.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            hidden.append(states[-1][0].numpy().astype(np.float64))
    for nodes in (1, 2, 3):
        settings = ClusterSettings(
            workers=tuple(addresses[: nodes - 1]),
            threads=1,
            kv_type="f32",
            context=64,
            page_size=16,
            max_step_tokens=16,
        )
        with (
            open_model(str(reference.path)) as model,
            core(model, settings, tokenizer=PlainTokenizer(model.spec.vocab_size)) as running,
        ):
            frontend = Frontend(running.engine, model, running.cluster)
            for kind in ("mean", "cls", "last"):
                inputs = [TokenIds(tuple(ids)) for ids in reference.texts]
                made = asyncio.run(frontend.embed(inputs, kind))
                for vector, states in zip(made, hidden, strict=True):
                    rows = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}
                    wanted = rows[kind] / np.linalg.norm(rows[kind])
                    difference = float(np.abs(vector.normalised() - wanted).max())
                    print(f"{name}, {nodes} nodes, {kind}: {difference:.1e}")
                    assert difference < LARGEST_DIFFERENCE, (nodes, kind)
            frontend.close()
