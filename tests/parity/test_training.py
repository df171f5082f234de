"""models/train.py: steps resumed to equal weights; its folder and a nanoGPT checkpoint run."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import hearth

from hearth.converter import open_model

pytestmark = pytest.mark.parity

TRAIN = Path(__file__).resolve().parents[2] / "models" / "train.py"
TEXT = "The quick brown fox jumps over the lazy dog; it was night.\nAnd so it went on.\n" * 60
SIZES = ("--layers", "2", "--heads", "2", "--hidden", "32", "--context", "24", "--rows", "4")
EXACT = ("--weights", "f32", "--kv-type", "f32", "--sync-type", "f32", "--threads", "1")
PROMPT = "The quick"


def train(*arguments: str) -> str:
    """Run the script; what it prints."""
    ran = subprocess.run(
        [sys.executable, str(TRAIN), *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The ids that a model of transformers makes, without a cache."""
    import torch

    made = list(ids)
    with torch.no_grad():
        for _ in range(count):
            made.append(int(model(torch.tensor([made])).logits[0, -1].argmax()))
    return made[len(ids) :]


def generated(path: Path, nodes: str) -> list[int]:
    arguments = ("--prompt", PROMPT, "--max-tokens", "12", "--nodes", nodes, "--context", "24")
    ran = hearth("generate", str(path), *arguments, *EXACT, "--json")
    assert ran.returncode == 0, ran.stderr
    ids: list[int] = json.loads(ran.stdout)["token_ids"]
    return ids


@pytest.mark.parametrize(("kind", "tokens"), [("gpt", "char"), ("gpt", "bpe"), ("llama", "char")])
def test_a_few_steps(tmp_path: Path, kind: str, tokens: str) -> None:
    pytest.importorskip("transformers", reason="make test PARITY=1 installs transformers")
    from transformers import AutoModelForCausalLM

    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    common: tuple[str, ...] = ("--text", str(text), "--kind", kind, "--tokens", tokens, *SIZES)
    common += ("--vocabulary", "300", "--dropout", "0.1", "--every", "4", "--learning-rate", "3e-3")
    printed = train(*common, "--out", str(tmp_path / "once"), "--steps", "8")
    assert "step 8 of 8: loss" in printed
    train(*common, "--out", str(tmp_path / "twice"), "--steps", "4")
    train("--out", str(tmp_path / "twice"), "--resume", "--steps", "8", "--every", "4")
    once, twice = (tmp_path / name / "model.safetensors" for name in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()
    plots = [(tmp_path / name / "loss.svg").read_text() for name in ("once", "twice")]
    assert plots[0].count("polyline") == 2
    assert plots[0].replace("once", "twice") == plots[1]

    auto: Any = AutoModelForCausalLM
    reference = auto.from_pretrained(tmp_path / "once").eval()
    with open_model(str(tmp_path / "once")) as model:
        ids = model.tokenizer().encode(PROMPT)
    expected = greedy(reference, ids, 12)
    assert generated(tmp_path / "once", "1") == expected
    assert generated(tmp_path / "once", "2") == expected


def test_a_checkpoint_of_nanogpt(tmp_path: Path) -> None:
    """Saved by torch: a GPT under nanoGPT's names, and its characters in meta.pkl."""
    pytest.importorskip("transformers", reason="make test PARITY=1 installs transformers")
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    characters = sorted(set(TEXT))
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32}
    settings: dict[str, Any] = {"activation_function": "gelu", "bos_token_id": None}
    settings |= {"eos_token_id": None, "n_positions": 24, "vocab_size": len(characters)}
    reference: Any = GPT2LMHeadModel(GPT2Config(**sizes, **settings))
    reference.eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    state = {
        f"_orig_mod.{name}": value.t().contiguous()
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        else value
        for name, value in reference.state_dict().items()
    }
    optimizer = torch.optim.AdamW(reference.parameters())
    sum(parameter.sum() for parameter in reference.parameters()).backward()
    optimizer.step()
    state = {name: value.clone() for name, value in state.items() if "lm_head" not in name}
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    args = sizes | {"block_size": 24, "vocab_size": len(characters), "bias": True, "dropout": 0.0}
    checkpoint: dict[str, Any] = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": args,
    }
    checkpoint |= {"iter_num": 1, "best_val_loss": torch.tensor(2.5), "config": {"dataset": "x"}}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    ids = {character: id for id, character in enumerate(characters)}
    meta = {"vocab_size": len(ids), "stoi": ids, "itos": dict(enumerate(characters))}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    loaded = {name.removeprefix("_orig_mod."): value for name, value in state.items()}
    turned = {
        name: value.t()
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        else value
        for name, value in loaded.items()
    }
    reference.load_state_dict(turned)
    expected = greedy(reference, [ids[character] for character in PROMPT], 12)
    assert len(set(expected)) > 1
    assert generated(tmp_path, "1") == expected
    assert generated(tmp_path / "ckpt.pt", "2") == expected
