"""Models larger than memory: the same numbers, with layers read from disk in every step."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import family_models
import numpy as np
import perplexity
import pytest
from engine_answers import answer
from harness import hearth

from hearth.common.errors import HearthError, Reason
from hearth.converter import open_model
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.app import core, serving
from hearth.root.engine.engine import Engine
from hearth.root.planning.layout import Layout
from hearth.root.planning.planner import make_plan
from hearth.root.planning.streaming import layer_bytes, least_held_bytes
from hearth.root.settings import ClusterSettings, Serving
from hearth.worker.server import WorkerServer

VOCAB = 320


def too_little(path: Path, nodes: int) -> int:
    """Bytes for the largest node with all layers on disk, and one layer more."""
    with open_model(str(path)) as model:
        spec = model.spec
        plan = make_plan(spec, model.tensor_type, Layout.tensor(nodes), (1.0,) * nodes)
    node = plan.nodes[0]
    cache = 16 * node.kv_page_bytes(spec, "f32", 8) + node.state_bytes(spec)
    memory = least_held_bytes(node) + cache + max(layer_bytes(node).values())
    assert memory < node.weight_bytes + cache
    return memory


def asked(
    path: Path, folder: Path, memory: int | None, workers: int
) -> tuple[list[int], list[str]]:
    """The answer to a prompt, and the plan's notes; memory: bytes of each node, None for plenty."""
    servers = [
        WorkerServer(
            "127.0.0.1:0",
            threads=1,
            memory_limit=memory,
            cache_dir=folder / f"worker{number}",
            name=f"worker{number}",
        )
        for number in range(workers)
    ]
    addresses = [f"127.0.0.1:{server.start()}" for server in servers]
    try:
        with perplexity.formed(
            str(path),
            addresses,
            context=128,
            page_size=8,
            memory_limit=memory,
            weights_on="disk",
            disk_dir=folder / "root",
        ) as (cluster, limits):
            engine = Engine(cluster, PlainTokenizer(VOCAB), limits, vocab_size=VOCAB)
            engine.start()
            ids = np.random.default_rng(4).integers(3, 300, 60).tolist()
            text, _ = answer(engine, ids)
            engine.stop(finish=False)
            return text, list(cluster.status().notes)
    finally:
        for server in servers:
            server.stop()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe", "qwen3.5-moe"])
def test_texts_are_those_of_weights_in_memory(family: str, workers: int, tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", family)
    wanted, notes = asked(path, tmp_path, None, workers)
    assert not any("on disk" in note for note in notes)
    found, notes = asked(path, tmp_path, too_little(path, 1 + workers), workers)
    assert found == wanted
    assert any("layers on disk: a step reads" in note for note in notes)
    # The files have no names, and are gone with the nodes.
    assert not list(tmp_path.rglob("weights-*"))


def test_a_disk_that_fails_ends_the_step_by_name(tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    with perplexity.formed(
        str(path),
        [],
        context=128,
        page_size=8,
        memory_limit=too_little(path, 1),
        weights_on="disk",
        disk_dir=tmp_path / "root",
    ) as (cluster, limits):
        engine = Engine(cluster, PlainTokenizer(VOCAB), limits, vocab_size=VOCAB)
        engine.start()
        ids = [5, 6, 7, 8, 9, 10]
        answer(engine, ids)
        with open_weights(tmp_path / "root").open("r+b") as file:
            file.truncate(0)
        with pytest.raises(HearthError, match="weights on disk: reading weights from the disk"):
            answer(engine, ids, cache=False)
        engine.stop(finish=False)


@pytest.mark.parametrize("place", [0.0, 0.4, 0.999])
def test_a_flipped_bit_ends_the_step_by_name(tmp_path: Path, place: float) -> None:
    """Wherever in the file it is: there are no wrong numbers."""
    path = family_models.write_model(tmp_path / "model", "qwen3")
    memory = too_little(path, 1)
    with perplexity.formed(
        str(path),
        [],
        context=128,
        page_size=8,
        memory_limit=memory,
        weights_on="disk",
        disk_dir=tmp_path / "root",
    ) as (cluster, limits):
        engine = Engine(cluster, PlainTokenizer(VOCAB), limits, vocab_size=VOCAB)
        engine.start()
        ids = [5, 6, 7, 8, 9, 10]
        answer(engine, ids)
        with open_weights(tmp_path / "root").open("r+b") as file:
            # Behind the last weight are zeros up to a whole unit.
            content = file.read()
            at = int(place * len(content.rstrip(b"\0")))
            file.seek(at)
            file.write(bytes([content[at] ^ 4]))
        with pytest.raises(HearthError, match=r"layer \d comes back from the disk damaged"):
            answer(engine, ids, cache=False)
        engine.stop(finish=False)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_root_whose_disk_failed_loads_again_and_goes_on(tmp_path: Path, workers: int) -> None:
    """The request that met the failure waits, and has the text that it would have had."""
    path = family_models.write_model(tmp_path / "model", "qwen3")
    server = WorkerServer("127.0.0.1:0", threads=1, name="node1", cache_dir=tmp_path / "node1")
    addresses = (f"127.0.0.1:{server.start()}",) if workers else ()
    settings = ClusterSettings(
        workers=addresses,
        shares=(1.0,) * (1 + workers),
        threads=1,
        context=128,
        page_size=8,
        memory_limit=too_little(path, 1 + workers),
        weights_on="disk",
        disk_dir=tmp_path / "root",
    )
    with (
        open_model(str(path)) as model,
        core(model, settings, form=False, pause_seconds=30) as running,
        serving(running, Serving(listen="127.0.0.1:0")),
    ):
        ids = [5, 6, 7, 8, 9, 10]
        wanted, _ = answer(running.engine, ids)
        with open_weights(tmp_path / "root").open("r+b") as file:
            file.truncate(0)
        assert answer(running.engine, ids, cache=False)[0] == wanted
        assert running.cluster.status().epoch == 2
    server.stop()


def open_weights(folder: Path) -> Path:
    """This process's descriptor of the folder's file of weights that can be written."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            flags = (
                (Path("/proc/self/fdinfo") / link.name).read_text().split("flags:")[1].split()[0]
            )
            if str(link.readlink()).startswith(f"{folder}/weights-") and int(flags, 8) & os.O_RDWR:
                return link
        except OSError:
            continue
    raise AssertionError("no file of weights is open")


def test_a_full_disk_and_a_missing_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    usage = shutil.disk_usage(tmp_path)
    for workers, name, whose in ((1, "worker0", "this worker's"), (0, "root", "the root's")):

        def found(folder: Path, full: str = name) -> object:
            return usage._replace(free=10) if full in folder.parts else usage

        monkeypatch.setattr(shutil, "disk_usage", found)
        memory = too_little(path, 1 + workers)
        problem = rf"the disk of .* has 10 B left, and the layers that do not fit {whose} memory"
        with pytest.raises(HearthError, match=problem) as error:
            asked(path, tmp_path, memory, workers)
        assert error.value.reason == Reason.OUT_OF_MEMORY


def test_a_refusal_names_the_option_and_how_fast_it_is(tmp_path: Path) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3")
    memory = too_little(path, 1)
    hint = r"or --weights-on disk, with which a step reads .* from disk: \S+ tokens/s at 500 MB/s"
    with (
        pytest.raises(HearthError, match=hint),
        perplexity.formed(str(path), context=128, page_size=8, memory_limit=memory),
    ):
        pass


def test_commands() -> None:
    options = ("--prompt", "Once upon a time", "--max-tokens", "20", "--context", "64")
    wanted = hearth("generate", "--model", "demo", *options)
    small = ("--memory-limit", "6MiB", "--weights-on", "disk")
    refused = hearth("generate", "--model", "demo", *options, *small)
    assert refused.returncode == 2
    assert "--weights-on disk keeps weights in --cache-dir, which is none" in refused.stderr
    with tempfile.TemporaryDirectory() as folder:
        found = hearth("generate", "--model", "demo", *options, *small, "--cache-dir", folder)
    assert (found.returncode, found.stdout) == (0, wanted.stdout)
