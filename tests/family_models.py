"""Small models of several families with random weights, as Hearth directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hearth.converter.hf_config import read_spec
from hearth.converter.readers.hearth import VERSION
from hearth.converter.spec_json import spec_to_json
from hearth.converter.tokenizers.plain import PlainTokenizer

_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 256,
    "vocab_size": 320,
    "max_position_embeddings": 4096,
}
# Their config.json, without the sizes that all have.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3"},
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "mistral": {"model_type": "mistral", "sliding_window": 40},
    "qwen3.5-moe": {
        "model_type": "qwen3_5_moe_text",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 32,
    },
}


def write_model(directory: Path, name: str) -> Path:
    """A model of one of CONFIGS in a new directory, the same at every call."""
    directory.mkdir(parents=True)
    spec = read_spec(_SIZES | CONFIGS[name], name)[1]
    random = np.random.default_rng(5)
    tensors = {}
    for tensor in spec.tensors:
        if tensor.stored_as:
            continue
        values = random.standard_normal(tensor.shape)
        if tensor.vector:
            if tensor.part.endswith("norm"):
                values = 1 + 0.1 * values
            elif tensor.part == "decay_rate":
                values = -np.exp(values - 1)
            elif not tensor.part.startswith("conv"):
                values *= 0.1
        else:
            values /= tensor.shape[1] ** 0.5
        tensors[tensor.name] = values.astype(np.float32)
    save_file(tensors, directory / "model.safetensors")
    hearth = {
        "version": VERSION,
        "weights": "f32",
        "tokenizer": PlainTokenizer.NAME,
        "spec": spec_to_json(spec),
    }
    (directory / "config.json").write_text(json.dumps({"hearth": hearth}))
    return directory
