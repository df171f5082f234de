"""Logits against Hugging Face transformers on tiny random Llama models, over 1, 2 and 3 nodes.

transformers' own save_pretrained writes each model; both sides compute in float32. Weights are
large enough that logits spread over several units. So the allowed difference of 1e-3 cannot hide a
wrong rotation, scale or cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import perplexity
import pytest

from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams
from hearth.worker.server import WorkerServer

pytestmark = pytest.mark.parity

F32 = npt.NDArray[np.float32]
LARGEST_DIFFERENCE = 1e-3
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # So short that the 40 positions here lie in all three of the scaling's ranges.
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@dataclass(frozen=True)
class Case:
    """A model: sizes, what else its configuration says, and how it is stored."""

    hidden: int = 64
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    head_size: int = 8
    ffn: int = 96
    vocab: int = 128
    tied: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    shard_size: str = "1GB"


CASES = {
    "grouped heads": Case(),
    "a KV head for every head": Case(heads=4, kv_heads=4, head_size=16),
    "one KV head": Case(kv_heads=1),
    "two KV heads, tied": Case(kv_heads=2, tied=True),
    "tied": Case(heads=6, kv_heads=3, head_size=12, hidden=72, tied=True),
    "odd sizes": Case(hidden=45, heads=9, kv_heads=3, head_size=10, ffn=77, vocab=101),
    "heads wider than hidden": Case(hidden=48, heads=6, kv_heads=3, head_size=32),
    "heads narrower than hidden": Case(hidden=128, heads=4, kv_heads=4, head_size=6, ffn=33),
    "llama3 rope": Case(head_size=32, config={"rope_parameters": LLAMA3}),
    "linear rope": Case(head_size=16, config={"rope_parameters": LINEAR}),
    "deep, other theta and epsilon": Case(
        layers=7,
        kv_heads=8,
        config={
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "rms_norm_eps": 1e-3,
        },
    ),
    "several files": Case(layers=3, shard_size="30KB"),
    "bfloat16": Case(hidden=96, heads=6, kv_heads=6, head_size=16, dtype="bfloat16"),
    "float16, tied, in several files": Case(tied=True, dtype="float16", shard_size="20KB"),
}
COMBINATIONS = [
    pytest.param(name, nodes, id=f"{name}, {nodes} nodes")
    for name, case in CASES.items()
    for nodes in (1, 2, 3)
    if nodes <= case.kv_heads
]


@dataclass(frozen=True)
class Reference:
    """A saved model, two texts, and the logits that transformers computes: [tokens, vocabulary]."""

    path: Path
    model: Any
    texts: tuple[list[int], list[int]]
    logits: tuple[F32, F32]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Makes the model of a case, once."""
    pytest.importorskip("transformers", reason="make test PARITY=1 installs transformers")
    made: dict[str, Reference] = {}

    def get(name: str) -> Reference:
        if name not in made:
            made[name] = make_reference(CASES[name], tmp_path_factory.mktemp("model"), len(made))
        return made[name]

    return get


def make_reference(case: Case, path: Path, seed: int) -> Reference:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        head_dim=case.head_size,
        intermediate_size=case.ffn,
        vocab_size=case.vocab,
        tie_word_embeddings=case.tied,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **case.config,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1, 0.3)  # norms, which are all ones otherwise
            else:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    model.to(getattr(torch, case.dtype)).save_pretrained(path, max_shard_size=case.shard_size)
    files = len(list(path.glob("*.safetensors")))
    assert (files > 1) == (case.shard_size != "1GB")
    loaded: Any = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    loaded.eval()
    random = np.random.default_rng(seed)
    texts = (
        random.integers(0, case.vocab, 40).tolist(),
        random.integers(0, case.vocab, 27).tolist(),
    )
    with torch.no_grad():
        logits = tuple(loaded(torch.tensor([ids])).logits[0].numpy() for ids in texts)
    assert min(rows.std() for rows in logits) > 0.5
    return Reference(path, loaded, texts, (logits[0], logits[1]))


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    """Two workers in this process: what travels is real, only the machine is shared."""
    servers = [WorkerServer("127.0.0.1:0", threads=1, name=f"node{n}") for n in (1, 2)]
    ports = [server.start() for server in servers]
    yield [f"127.0.0.1:{port}" for port in ports]
    for server in servers:
        server.stop()


@pytest.mark.parametrize(("name", "nodes"), COMBINATIONS)
def test_logits(
    reference: Callable[[str], Reference],
    addresses: list[str],
    name: str,
    nodes: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Two texts side by side, each in several steps: in chunks, and a token at a time."""
    expected = reference(name)
    # Rows of each step: of the first text, of the second.
    steps = [(9, 0), (1, 12), (16, 1), (1, 1), (12, 13), (1, 0)]
    # Pages are the root's to deal out: in no order, and not side by side.
    pages = ([5, 0, 3], [4, 1])
    lanes = ("grpc", "mesh") if nodes > 1 else ("mesh",)
    by_lane = []
    for lane in lanes:
        found: tuple[list[F32], list[F32]] = ([], [])
        places = [0, 0]
        with perplexity.formed(
            str(expected.path),
            addresses[: nodes - 1],
            "f32",
            context=48,
            page_size=16,
            sequences=2,
            lane=lane,
        ) as (cluster, limits):
            for counts in steps:
                parts = []
                for which, count in enumerate(counts):
                    if count:
                        ids = expected.texts[which][places[which] : places[which] + count]
                        parts.append((pages[which], places[which], ids))
                        places[which] += count
                rows = cluster.submit(perplexity.step(limits, parts)).result().logits
                for which, count in enumerate(counts):
                    found[which].append(rows[:count])
                    rows = rows[count:]
        by_lane.append(np.concatenate([*found[0], *found[1]]))
        assert places == [len(ids) for ids in expected.texts]
        difference = max(
            float(np.abs(np.concatenate(rows) - wanted).max())
            for rows, wanted in zip(found, expected.logits, strict=True)
        )
        record_property(f"largest_difference_{lane}", difference)
        print(f"{name}, {nodes} nodes, {lane}: {difference:.2e}")
        assert difference < LARGEST_DIFFERENCE
    # Both lanes add the ranks' parts in rank order: the same bits.
    assert np.array_equal(by_lane[0], by_lane[-1])


def test_greedy_generation(reference: Callable[[str], Reference], addresses: list[str]) -> None:
    """The engine's own prefill, decode and sampling, two requests at once over three nodes."""
    import torch

    expected = reference("llama3 rope")
    vocab = CASES["llama3 rope"].vocab
    wanted = []
    for ids in expected.texts:
        prompt = torch.tensor([ids[:20]])
        made = expected.model.generate(prompt, do_sample=False, max_new_tokens=28)
        wanted.append(made[0, 20:].tolist())
    assert len(set(wanted[0])) > 3  # more than one token over and over
    with perplexity.formed(
        str(expected.path), addresses, "f32", context=48, page_size=16, sequences=2
    ) as (cluster, limits):
        engine = Engine(cluster, PlainTokenizer(vocab), limits, vocab_size=vocab)
        engine.start()
        try:
            streams = [
                engine.generate(GenerateParams(tuple(ids[:20]), 28, ignore_eos=True))
                for ids in expected.texts
            ]
            events = [list(stream) for stream in streams]
        finally:
            engine.stop(finish=False)
    for made_by, ids in zip(events, wanted, strict=True):
        tokens = [token for e in made_by if isinstance(e, Delta) for token in e.token_ids]
        assert tokens == ids
