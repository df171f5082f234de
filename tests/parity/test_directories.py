"""Directories as people have them, against transformers: the same logits, or a clear refusal.

One small model, and what its directory says otherwise: settings in other places and spellings,
tensors under other names, files beside those that count.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import perplexity
import pytest

from hearth.converter import ModelError, open_model

pytestmark = pytest.mark.parity

LARGEST_DIFFERENCE = 1e-3
LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
ABSENT = "absent"

# What config.json says otherwise.
CONFIGS: dict[str, dict[str, Any]] = {
    "as saved": {},
    "spelled otherwise": {"architectures": ["LLaMAForCausalLM"]},
    "no architectures": {"architectures": ABSENT},
    "transformers 4": {"rope_parameters": ABSENT, "rope_theta": 77.0, "dtype": ABSENT},
    "neither theta": {"rope_parameters": ABSENT},
    "theta in rope_parameters": {"rope_parameters": DEFAULT | {"rope_theta": 77.0}},
    "theta twice": {"rope_theta": 5e5, "rope_parameters": DEFAULT | {"rope_theta": 77.0}},
    "rope_scaling": {"rope_parameters": ABSENT, "rope_scaling": LINEAR},
    "rope_scaling beside rope_parameters": {"rope_parameters": DEFAULT, "rope_scaling": LINEAR},
    "llama3 beside rope_parameters": {"rope_parameters": DEFAULT, "rope_scaling": LLAMA3},
    "both spellings of a type": {
        "rope_scaling": {"type": "linear", "rope_type": "llama3"} | LLAMA3
    },
    "type without an underscore": {"rope_parameters": LINEAR},
    "empty rope_scaling": {"rope_scaling": {}, "rope_parameters": LINEAR},
    "llama3, its original context at the top": {
        "rope_parameters": {k: v for k, v in LLAMA3.items() if "original" not in k},
        "original_max_position_embeddings": 32,
    },
    "llama3 without an original context": {
        "rope_parameters": {k: v for k, v in LLAMA3.items() if "original" not in k},
        "max_position_embeddings": 48,
    },
    "head_dim null": {"head_dim": None},
    "head_dim absent": {"head_dim": ABSENT},
    "KV heads null": {"num_key_value_heads": None},
    "swish": {"hidden_act": "swish"},
    "tie_word_embeddings absent": {"tie_word_embeddings": ABSENT},
    "theta that rope_scaling drops": {
        "rope_parameters": DEFAULT | {"rope_theta": 77.0},
        "rope_scaling": LINEAR,
    },
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "biases": {"attention_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "causal, as it says": {"is_causal": True},
    "not causal": {"is_causal": False},
    "window that holds the context": {"sliding_window": 64},
    "window": {"sliding_window": 16},
    "kinds of layers": {"layer_types": ["full_attention", "full_attention"]},
    "decoder, as older files say": {"is_decoder": False, "pretraining_tp": 2},
}
REFUSED = {
    "not causal": "is_causal is False",
    "window": "sliding_window is 16",
    "KV heads null": "shape",
    "theta that rope_scaling drops": "which rope_scaling replaces",
    "biases": "q_proj.bias is missing",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model as transformers saves it, with a head of its own."""
    pytest.importorskip("transformers", reason="make test PARITY=1 installs transformers")
    return save(tmp_path / "model", tied=False)


def save(path: Path, tied: bool, **more: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=128,
        tie_word_embeddings=tied,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    model.save_pretrained(path, **more)
    return path


def check(directory: Path) -> None:
    """Logits of 40 positions."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = np.random.default_rng(1).integers(0, 128, 40).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    with perplexity.formed(str(directory), (), "f32", context=48) as (cluster, limits):
        found = perplexity.logits_of(cluster, limits, ids)
    difference = float(np.abs(found - expected).max())
    print(f"{difference:.2e}")
    assert difference < LARGEST_DIFFERENCE


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(directory: Path, name: str) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text()) | CONFIGS[name]
    path.write_text(json.dumps({k: v for k, v in config.items() if v != ABSENT}))
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            open_model(str(directory))
        return
    check(directory)


def rename(directory: Path, names: Callable[[str], str], without: str = "") -> None:
    """Saves the tensors under other names."""
    from safetensors.numpy import load_file, save_file

    path = directory / "model.safetensors"
    tensors = {names(n): values for n, values in load_file(path).items() if n != without}
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_tied_head_that_is_stored_alone(directory: Path, tmp_path: Path) -> None:
    tied = save(tmp_path / "tied", tied=True)
    rename(tied, lambda name: name.replace("model.embed_tokens", "lm_head"))
    check(tied)


def test_a_tied_model_that_is_stored_without_its_prefix(directory: Path, tmp_path: Path) -> None:
    tied = save(tmp_path / "tied", tied=True)
    rename(tied, lambda name: name.removeprefix("model."))
    check(tied)


def test_an_index_and_parts_of_another_model_beside_a_single_file(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    other: Any = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    kept = (directory / "model.safetensors").read_bytes()
    other.save_pretrained(directory, max_shard_size="30KB")
    assert (directory / "model.safetensors.index.json").is_file()
    (directory / "model.safetensors").write_bytes(kept)
    (directory / "consolidated.safetensors").write_bytes(kept)
    check(directory)
