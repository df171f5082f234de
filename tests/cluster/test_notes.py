"""The note on how a model is read: once, on standard error of every command that loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    random_tensors,
    spm_metadata,
    tiny_spec,
)
from gguf import GGMLQuantizationType
from harness import ServiceProcess, hearth

from hearth.converter.packaged import demo_directory

SPEC = tiny_spec(hidden_size=256, heads=4, kv_heads=2, head_size=64, ffn_size=512, vocab_size=300)
CONVERTED = "note: tiny: tensors in TQ2_0 are converted to q4_k while loading"
TEXT_PART = "note: images: it also reads images or sound; Hearth runs its text part"


def ternary(rows: int, columns: int) -> bytes:
    """Rows in TQ2_0: 64 bytes of codes and an f16 scale for 256 columns."""
    random = np.random.default_rng(rows)
    blocks = random.integers(0, 256, (rows, columns // 256, 66), np.uint8)
    blocks[..., 64:] = np.full((*blocks.shape[:2], 1), 0.02, "<f2").view(np.uint8)
    return blocks.tobytes()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a GGUF file in TQ2_0, and a model that also reads images."""
    folder = tmp_path_factory.mktemp("models")
    stored: dict[str, Any] = dict(gguf_tensors(SPEC, random_tensors(SPEC), "f32"))
    for name, (_, shape, _) in stored.items():
        if len(shape) == 2 and "token_embd" not in name:
            stored[name] = (GGMLQuantizationType.TQ2_0.value, shape, ternary(*shape))
    metadata = gguf_metadata(SPEC) | spm_metadata() | {"general.name": "tiny"}
    (folder / "tiny.gguf").write_bytes(gguf_bytes(metadata, stored))
    images = Path(shutil.copytree(demo_directory(), folder / "images"))
    config = json.loads((images / "config.json").read_text())
    whole = {"model_type": "mistral3", "text_config": config | {"model_type": "mistral"}}
    (images / "config.json").write_text(json.dumps(whole))
    return folder


COMMANDS = {
    "generate": ("-p", "a", "--max-tokens", "2", "--threads", "1"),
    "chat": ("--threads", "1"),
    "bench": ("--prompt-tokens", "4", "--new-tokens", "2", "--threads", "1"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("model", "line"), [("tiny.gguf", CONVERTED), ("images", TEXT_PART)])
def test_commands_note_it_once(models: Path, command: str, model: str, line: str) -> None:
    done = hearth(command, str(models / model), *COMMANDS[command])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(line) == 1, done.stderr
    assert line not in done.stdout


@pytest.mark.parametrize(
    ("model", "line"), [("tiny.gguf", CONVERTED.replace("q4_k", "q8_0")), ("images", TEXT_PART)]
)
def test_a_conversion_notes_it_once(models: Path, tmp_path: Path, model: str, line: str) -> None:
    done = hearth("convert", str(models / model), str(tmp_path / "made"), "--weights", "q8_0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(line) == 1, done.stderr
    again = hearth("generate", str(tmp_path / "made"), *COMMANDS["generate"])
    assert again.returncode == 0 and "note: " not in again.stderr, again.stderr


@pytest.mark.parametrize("several", [False, True])
def test_a_root_notes_it_once(models: Path, tmp_path: Path, several: bool) -> None:
    chosen = ("--models", str(models)) if several else (str(models / "tiny.gguf"),)
    root = ServiceProcess(
        *("root", *chosen, "--threads", "1", "--listen", "127.0.0.1:0", "--no-http"),
        log=tmp_path / "log",
    )
    root.end()
    found = (tmp_path / "log").read_text()
    assert found.count(CONVERTED) == 1, found
    assert found.count(TEXT_PART) == int(several), found
