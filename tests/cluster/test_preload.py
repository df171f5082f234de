"""`hearth preload`: slices that a worker then finds in its cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import perplexity
import pytest

from hearth.cli.main import main
from hearth.common.errors import HearthError, Reason
from hearth.converter import open_model
from hearth.root.cluster.slices_out import write_slices
from hearth.root.planning.layout import Layout
from hearth.root.planning.planner import make_plan
from hearth.worker.cache import Part
from hearth.worker.server import WorkerServer


@contextmanager
def workers(*folders: Path) -> Iterator[list[str]]:
    """A worker in this process for each slice cache."""
    servers = [WorkerServer("127.0.0.1:0", threads=1, cache_dir=each) for each in folders]
    try:
        yield [f"127.0.0.1:{server.start()}" for server in servers]
    finally:
        for server in servers:
            server.stop()


def sent_bytes(addresses: list[str]) -> list[int]:
    """Bytes of weights that a cluster of the demo model sends to each worker."""
    with perplexity.formed("demo", addresses, None, context=64) as (cluster, _):
        return [node.weight_bytes_from_network for node in cluster.status().nodes[1:]]


def test_a_folder_has_what_workers_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stick = tmp_path / "stick"
    command = ["preload", "demo", "--to", str(stick), "--nodes", "3"]
    assert main(command) == 0
    assert "0 slices, 0 B written" not in capsys.readouterr().out
    copy = tmp_path / "copy"
    shutil.copytree(stick, copy)
    copy.chmod(0o700)
    with workers(stick, copy) as addresses:
        assert sent_bytes(addresses) == [0, 0]
    # A second time there is nothing to do.
    assert main(command) == 0
    assert ": 0 slices, 0 B written of " in capsys.readouterr().out


def test_slices_of_one_worker(tmp_path: Path) -> None:
    assert (
        main(["preload", "demo", "--to", str(tmp_path / "1"), "--nodes", "3", "--rank", "1"]) == 0
    )
    with workers(tmp_path / "1", tmp_path / "2") as addresses:
        first, second = sent_bytes(addresses)
    assert first == 0
    assert second > 0


def test_caches_of_running_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with workers(tmp_path / "1", tmp_path / "2") as addresses:
        command = ["preload", "demo", "--context", "64", "--no-predict", "--workers", *addresses]
        assert main(command) == 0
        assert " sent, 0 B were there" in capsys.readouterr().out
        assert sent_bytes(addresses) == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "give --workers HOST:PORT"),
        (["--to", "x"], "--to needs --nodes N"),
        (["--to", "x", "--nodes", "1"], "--to needs --nodes N"),
        (["--to", "x", "--nodes", "3", "--rank", "3"], "--rank 3 of 3 nodes: workers are 1 to 2"),
        (["--to", "x", "--nodes", "999"], "cannot be divided"),
        (["--workers", "a:1", "--to", "x"], "--to"),
        (["--workers", "a:1", "--rank", "1"], "--rank is for --to DIR"),
    ],
)
def test_bad_options(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [str(tmp_path / "x") if each == "x" else each for each in arguments]
    assert main(["preload", "demo", *given]) in (1, 2)
    assert problem in capsys.readouterr().err


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: Part, offset: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "write", full)
    with open_model("demo") as model:
        plan = make_plan(model.spec, model.tensor_type, Layout.tensor(2))
        with pytest.raises(HearthError, match=r"do not fit on the disk .* No space left") as raised:
            write_slices(model, plan.nodes[1:], tmp_path / "x")
    assert raised.value.reason == Reason.OUT_OF_MEMORY
    assert not list((tmp_path / "x").glob("*.slice"))
