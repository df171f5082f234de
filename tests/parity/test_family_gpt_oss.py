"""gpt-oss against transformers, with experts in floats and in MXFP4."""

import json
from pathlib import Path
from typing import Any

import family_parity
import numpy as np
import pytest
from family_parity import Case

pytestmark = pytest.mark.parity

SIZES = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7}
CASES = {
    "gpt_oss": Case("gpt_oss", SIZES),
    "gpt_oss, odd sizes, tied": Case(
        "gpt_oss",
        {
            **SIZES,
            "hidden_size": 54,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 5,
            "swiglu_limit": 1.5,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
        shares=(1, 2, 1),
        dtype="bfloat16",
        shard_size="60KB",
    ),
}
# Numbers of 4 bits: a sign, two bits of exponent, one of mantissa.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
FP4 = np.concatenate([FP4, -FP4])


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, addresses: list[str], tmp_path: Path) -> None:
    family_parity.check(CASES[name], tmp_path / "model", addresses, len(name))


def test_experts_in_mxfp4(addresses: list[str], tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    pieces: dict[str, Any] = {}

    def fill(name: str, parameter: Any) -> bool:
        if not name.endswith(("gate_up_proj", "down_proj")):
            return False
        import torch

        count, columns, rows = parameter.shape
        codes = random.integers(0, 16, (count, rows, columns // 32, 32), dtype=np.uint8)
        scales = random.integers(121, 124, (count, rows, columns // 32), dtype=np.uint8)
        pieces[f"{name}_blocks"] = codes[..., 0::2] | codes[..., 1::2] << 4
        pieces[f"{name}_scales"] = scales
        values = FP4[codes] * np.exp2(scales[..., None].astype(np.float32) - 127)
        turned = values.reshape(count, rows, columns).swapaxes(1, 2).copy()
        parameter.copy_(torch.from_numpy(turned))
        return True

    expected = family_parity.make_reference(
        Case("gpt_oss", SIZES, fill=fill), tmp_path / "floats", 5
    )
    packed = tmp_path / "packed"
    packed.mkdir()
    config = json.loads((expected.path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (packed / "config.json").write_text(json.dumps(config))
    from safetensors.numpy import load_file, save_file

    others = {
        name: tensor
        for name, tensor in load_file(expected.path / "model.safetensors").items()
        if f"{name}_blocks" not in pieces
    }
    save_file(others | pieces, packed / "model.safetensors")
    for nodes in (1, 3):
        found = family_parity.hearth_logits(
            packed, expected.texts, addresses[: nodes - 1], "mesh", (2.0, 1.0, 1.0)[:nodes]
        )
        for rows, wanted in zip(found, expected.logits, strict=True):
            assert float(np.abs(rows - wanted).max()) < family_parity.LARGEST_DIFFERENCE
