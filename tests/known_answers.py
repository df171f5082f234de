"""Read and write the known answers of the demo model (tests/known, made by its make.py)."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAGIC = b"HTHKNOWN"
VERSION = 1
KNOWN = Path(__file__).resolve().parent / "known"
MODEL = Path(__file__).resolve().parents[1] / "models" / "demo"
# Magic, version, rows, columns; then the rows' positions (uint32) and the rows (float32).
_HEADER = struct.Struct("<8sIII")


def model_digest() -> str:
    """SHA-256 of the files that the answers depend on."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update((MODEL / name).read_bytes())
    return digest.hexdigest()


def read_stories260k() -> tuple[list[int], str]:
    """The 200 greedy tokens of stories260k from BOS, by transformers, and their text."""
    known: dict[str, Any] = json.loads((KNOWN / "stories260k.json").read_text())
    assert (known["magic"], known["version"]) == (MAGIC.decode(), VERSION)
    return known["greedy_ids"], known["text"]


def read_stories() -> list[dict[str, Any]]:
    """Each with prompt, prompt_ids (BOS first), greedy_ids and text."""
    known: dict[str, Any] = json.loads((KNOWN / "demo.json").read_text())
    assert (known["magic"], known["version"]) == (MAGIC.decode(), VERSION)
    assert known["model_sha256"] == model_digest(), "models/demo changed: run tests/known/make.py"
    stories: list[dict[str, Any]] = known["stories"]
    return stories


def write_logits(path: Path, positions: Sequence[int], rows: npt.NDArray[np.float32]) -> None:
    """rows: [positions, vocabulary]."""
    header = _HEADER.pack(MAGIC, VERSION, *rows.shape)
    path.write_bytes(header + np.asarray(positions, "<u4").tobytes() + rows.astype("<f4").tobytes())


def read_logits() -> tuple[list[int], npt.NDArray[np.float32]]:
    """Positions in the first story; the logits after the token at each, [positions, vocabulary]."""
    data = (KNOWN / "demo.logits").read_bytes()
    magic, version, rows, columns = _HEADER.unpack_from(data)
    assert (magic, version) == (MAGIC, VERSION)
    assert len(data) == _HEADER.size + 4 * rows * (1 + columns)
    positions = np.frombuffer(data, "<u4", rows, _HEADER.size)
    logits = np.frombuffer(data, "<f4", rows * columns, _HEADER.size + 4 * rows)
    return positions.tolist(), logits.reshape(rows, columns)
