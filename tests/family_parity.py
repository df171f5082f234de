"""Tiny random models of a family, and their logits by transformers and by Hearth on several nodes.

transformers' own save_pretrained writes each model; both sides compute in float32. Weights are
large enough that logits spread over several units. So the allowed difference of 1e-3 cannot hide a
wrong rotation, scale or cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import perplexity
import pytest

from hearth.worker.server import WorkerServer

F32 = npt.NDArray[np.float32]
LARGEST_DIFFERENCE = 1e-3
# Rows of each step: of the first text, of the second. Chunks, and a token at a time.
STEPS = [(9, 0), (1, 12), (16, 1), (1, 1), (12, 13), (1, 0)]
TEXTS = (40, 27)
# Plain PyTorch, which takes any size.
_EAGER: Any = {"attn_implementation": "eager", "experts_implementation": "eager"}


@dataclass(frozen=True)
class Case:
    """A tiny model: its model_type and its configuration in transformers."""

    model_type: str
    config: dict[str, Any]
    nodes: Sequence[int] = (1, 2, 3)
    # A share for each node, root first; equal if None.
    shares: tuple[float, ...] | None = None
    dtype: str = "float32"
    shard_size: str = "1GB"
    # The class of transformers that makes it.
    auto: str = "AutoModelForCausalLM"
    # (name, parameter) -> True where it has set the parameter itself.
    fill: Callable[[str, Any], bool] = field(default=lambda name, parameter: False)


# Sizes that all cases share; a case's own come after them.
COMMON = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Reference:
    """A saved model, two texts, and the logits that transformers computes: [tokens, vocabulary]."""

    path: Path
    model: Any
    texts: tuple[list[int], list[int]]
    logits: tuple[F32, F32]


def make_reference(case: Case, path: Path, seed: int) -> Reference:
    """A random model of the case in `path`. Needs transformers, whose absence skips the test."""
    pytest.importorskip("transformers", reason="make test PARITY=1 installs transformers")
    import torch
    import transformers

    torch.manual_seed(seed)
    config: Any = transformers.AutoConfig.for_model(case.model_type, **(COMMON | case.config))
    auto: Any = getattr(transformers, case.auto)
    model = auto.from_config(config, **_EAGER)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if case.fill(name, parameter):
                continue
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(1, 0.3)  # norms, which are all ones otherwise
        for name, buffer in model.named_buffers():
            case.fill(name, buffer)
    model.to(getattr(torch, case.dtype)).save_pretrained(path, max_shard_size=case.shard_size)
    files = len(list(path.glob("*.safetensors")))
    assert (files > 1) == (case.shard_size != "1GB")
    loaded = auto.from_pretrained(path, dtype=torch.float32, **_EAGER)
    loaded.eval()
    random = np.random.default_rng(seed)
    vocab = config.get_text_config().vocab_size
    texts = tuple(random.integers(0, vocab, count).tolist() for count in TEXTS)
    with torch.no_grad():
        logits = tuple(loaded(torch.tensor([ids])).logits[0].numpy() for ids in texts)
    assert min(rows.std() for rows in logits) > 0.5
    return Reference(path, loaded, (texts[0], texts[1]), (logits[0], logits[1]))


def hearth_logits(
    path: Path,
    texts: tuple[list[int], list[int]],
    addresses: Sequence[str],
    lane: str,
    shares: tuple[float, ...] | None = None,
    device: str = "cpu",
) -> tuple[F32, F32]:
    """Logits of two texts side by side, each in several steps: [tokens, vocabulary]."""
    # Pages are the root's to deal out: in no order, and not side by side.
    pages = ([5, 0, 3], [4, 1])
    found: tuple[list[F32], list[F32]] = ([], [])
    places = [0, 0]
    with perplexity.formed(
        str(path),
        addresses,
        "f32",
        context=48,
        page_size=16,
        sequences=2,
        lane=lane,
        shares=shares,
        device=device,
    ) as (cluster, limits):
        for counts in STEPS:
            parts = []
            for which, count in enumerate(counts):
                if count:
                    ids = texts[which][places[which] : places[which] + count]
                    parts.append((pages[which], places[which], ids))
                    places[which] += count
            rows = cluster.submit(perplexity.step(limits, parts)).result().logits
            for which, count in enumerate(counts):
                found[which].append(rows[:count])
                rows = rows[count:]
    assert places == [len(ids) for ids in texts]
    return np.concatenate(found[0]), np.concatenate(found[1])


def check(case: Case, path: Path, addresses: Sequence[str], seed: int) -> None:
    """Compare the logits of a case on each of its counts of nodes, by both lanes."""
    expected = make_reference(case, path, seed)
    for nodes in case.nodes:
        by_lane = []
        for lane in ("grpc", "mesh") if nodes > 1 else ("mesh",):
            shares = case.shares[:nodes] if case.shares else None
            found = hearth_logits(
                expected.path, expected.texts, addresses[: nodes - 1], lane, shares
            )
            difference = max(
                float(np.abs(rows - wanted).max())
                for rows, wanted in zip(found, expected.logits, strict=True)
            )
            print(f"{case.model_type}, {nodes} nodes, {lane}: {difference:.2e}")
            assert difference < LARGEST_DIFFERENCE, f"{nodes} nodes, {lane}"
            by_lane.append(found)
        # Both lanes add the ranks' parts in rank order: the same bits.
        for one, other in zip(by_lane[0], by_lane[-1], strict=True):
            assert np.array_equal(one, other)


def workers(count: int = 2) -> Iterator[list[str]]:
    """Addresses of workers in this process: only the machine is shared."""
    servers = [WorkerServer("127.0.0.1:0", threads=1, name=f"node{n}") for n in range(1, count + 1)]
    ports = [server.start() for server in servers]
    yield [f"127.0.0.1:{port}" for port in ports]
    for server in servers:
        server.stop()
