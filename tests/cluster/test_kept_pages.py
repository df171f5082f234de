"""KV pages on disk over real nodes: a restart finds conversations again, and the text is the same.

Counts of cached tokens decide, never times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import family_models
import numpy as np
import perplexity
import pytest
from engine_answers import NEW_TOKENS, answer
from harness import ServiceProcess

from hearth.client import Client
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.engine import Engine
from hearth.worker.server import WorkerServer

Start = Callable[..., ServiceProcess]

VOCAB = 320
PAGE = 8


@contextmanager
def nodes(
    path: Path, folders: Path, workers: int, **settings: Any
) -> Iterator[tuple[Cluster, Engine]]:
    """A root and its workers, all of them new, that keep pages below `folders`."""
    with ExitStack() as stack:
        addresses = []
        for number in range(1, workers + 1):
            server = WorkerServer(
                "127.0.0.1:0", threads=1, name=f"n{number}", page_dir=folders / f"node{number}"
            )
            addresses.append(f"127.0.0.1:{server.start()}")
            stack.callback(server.stop)
        given: dict[str, Any] = {
            "context": 256,
            "page_size": PAGE,
            "sequences": 4,
            "page_dir": folders / "node0",
        } | settings
        cluster, limits = stack.enter_context(perplexity.formed(str(path), addresses, **given))
        engine = Engine(
            cluster,
            PlainTokenizer(VOCAB),
            limits,
            vocab_size=VOCAB,
            archive=cluster.archive,
            pause_seconds=60,
        )
        engine.start()
        stack.callback(engine.stop, finish=False)
        yield cluster, engine


def prompt(seed: int, length: int = 60) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 300, length)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.page"))


# The first with sliding windows; the second's state goes back by snapshots alone.
@pytest.mark.parametrize(
    ("family", "workers", "lane"),
    [
        ("mistral", 0, "mesh"),
        ("qwen3", 2, "mesh"),
        ("qwen3", 2, "grpc"),
        ("qwen3.5-moe", 0, "mesh"),
        ("qwen3.5-moe", 1, "mesh"),
    ],
)
def test_a_restart_finds_the_conversation_again(
    family: str, workers: int, lane: str, tmp_path: Path
) -> None:
    path = family_models.write_model(tmp_path / "model", family)
    first = prompt(1)
    with nodes(path, tmp_path, workers, lane=lane) as (_, engine):
        text, cached = answer(engine, first)
        assert cached == 0
        second = [*first, *text, *prompt(2, 20)]
        wanted, _ = answer(engine, second, cache=False)
    with nodes(path, tmp_path, workers, lane=lane) as (_, engine):
        # All full pages of prompt and answer but the answer's last token, which was not computed.
        kept = (60 + NEW_TOKENS - 1) // PAGE * PAGE
        assert answer(engine, second) == (wanted, kept)
        # Now in memory too.
        assert answer(engine, second) == (wanted, (len(second) - 1) // PAGE * PAGE)


@pytest.mark.parametrize("change", ["model", "cut", "kv type", "sync type"])
def test_pages_of_something_else_are_not_found(change: str, tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    first = prompt(1)
    with nodes(path, tmp_path, 1) as (_, engine):
        answer(engine, first)
        assert files(tmp_path / "node0")
    settings: dict[str, Any] = {}
    workers = 1
    if change == "model":
        path = family_models.write_model(tmp_path / "other", "qwen3")
        [weights] = path.glob("*.safetensors")
        data = weights.read_bytes()
        weights.write_bytes(data[:-4] + data[-8:-4])
    elif change == "cut":
        workers = 0
    elif change == "kv type":
        settings["kv_type"] = "f16"
    else:
        settings["sync_type"] = "f16"
    with nodes(path, tmp_path, workers, **settings) as (_, engine):
        wanted, _ = answer(engine, first, cache=False)
        assert answer(engine, first) == (wanted, 0)


@pytest.mark.parametrize("damage", ["a bit", "shorter", "removed", "exchanged", "link", "fifo"])
@pytest.mark.parametrize("node", [0, 2])
def test_a_page_that_one_node_has_lost_is_computed_by_all(
    damage: str, node: int, tmp_path: Path
) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    first = prompt(1)
    with nodes(path, tmp_path, 2) as (_, engine):
        wanted, _ = answer(engine, first)
    pages = files(tmp_path / f"node{node}")
    assert len(pages) == (60 + NEW_TOKENS - 1) // PAGE
    for page in pages:
        hurt(page, damage, pages)
    with nodes(path, tmp_path, 2) as (_, engine):
        assert answer(engine, first) == (wanted, 0)
    # It was stored again.
    with nodes(path, tmp_path, 2) as (_, engine):
        assert answer(engine, first) == (wanted, 56)


def hurt(page: Path, damage: str, pages: Sequence[Path]) -> None:
    data = page.read_bytes()
    if damage == "a bit":
        page.write_bytes(data[:100] + bytes([data[100] ^ 4]) + data[101:])
    elif damage == "shorter":
        page.write_bytes(data[:-1])
    elif damage == "exchanged":
        other = pages[(pages.index(page) + 1) % len(pages)]
        page.write_bytes(other.read_bytes())
    else:
        page.unlink()
        if damage == "link":
            elsewhere = page.with_name("elsewhere")
            elsewhere.write_bytes(data)
            page.symlink_to(elsewhere)
        elif damage == "fifo":
            os.mkfifo(page)


def test_a_cluster_formed_again_finds_what_was_stored(tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    first = prompt(1)
    with nodes(path, tmp_path, 2) as (cluster, engine):
        addresses = [node.address for node in cluster.status().nodes[1:]]
        wanted, _ = answer(engine, first)
        engine.resume(cluster.form(addresses))
        assert answer(engine, first) == (wanted, 56)
        # Another cut has other pages; the first finds its own again.
        engine.resume(cluster.form(addresses[:1]))
        assert answer(engine, first) == (wanted, 0)
        engine.resume(cluster.form(addresses))
        assert answer(engine, first) == (wanted, 56)


def test_a_worker_that_keeps_no_pages_turns_the_disk_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    server = WorkerServer("127.0.0.1:0", threads=1, name="plain")
    address = f"127.0.0.1:{server.start()}"
    try:
        with perplexity.formed(
            str(path), [address], context=256, page_size=PAGE, page_dir=tmp_path / "pages"
        ) as (cluster, limits):
            engine = Engine(
                cluster, PlainTokenizer(VOCAB), limits, vocab_size=VOCAB, archive=cluster.archive
            )
            engine.start()
            wanted = answer(engine, prompt(1))
            assert wanted[1] == 0
            assert answer(engine, prompt(1)) == (wanted[0], 56)
            engine.stop(finish=False)
    finally:
        server.stop()
    assert not files(tmp_path / "pages")
    assert "runs without --kv-cache disk" in caplog.text


def test_killed_in_the_middle_of_an_answer(
    start_worker: Start, start_root: Start, tmp_path: Path
) -> None:
    """kill -9 of all nodes loses the last pages at most; the same request finds the others."""
    text = "Once upon a time there was " * 16

    def start() -> tuple[ServiceProcess, list[ServiceProcess]]:
        kept = ("--kv-cache", "disk", "--cache-dir")
        workers = [start_worker(*kept, str(tmp_path / f"node{n}")) for n in (1, 2)]
        addresses = [worker.address for worker in workers]
        root = start_root(
            *("--model", "demo", *kept, str(tmp_path / "node0"), "--workers", *addresses)
        )
        return root, workers

    root, workers = start()
    with Client(root.address) as client:
        full = (len(client.tokenize(text)) - 1) // 32
        assert full > 1
        with client.generate(text, max_tokens=100, ignore_eos=True, timeout=60) as stream:
            for _ in stream:
                # The pages of the prompt are on the disks of all nodes soon after the first token.
                if all(len(files(tmp_path / f"node{n}" / "pages")) >= full for n in range(3)):
                    break
            for service in (root, *workers):
                service.kill()
    assert all(len(files(tmp_path / f"node{n}" / "pages")) >= full for n in range(3))
    root, workers = start()
    texts, cached = [], []
    with Client(root.address) as client:
        for _ in range(2):
            with client.generate(text, max_tokens=20, ignore_eos=True, timeout=60) as stream:
                for _ in stream:
                    pass
            texts.append(stream.token_ids)
            assert stream.usage is not None
            cached.append(stream.usage.cached_tokens)
    assert cached == [full * 32, full * 32]
    assert texts[0] == texts[1]
    for service in (root, *workers):
        assert service.end() == 0
