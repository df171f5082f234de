"""The limit of names that reach others, and the warning about more threads than cores."""

from __future__ import annotations

import pytest

from hearth.cli import options as common
from hearth.common import system
from hearth.common.channels import MAX_NAME_BYTES
from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.links import _unfit_names
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.lease import LeaseId, LeaseState
from hearth.worker.server import WorkerServer

# Names of as many bytes as are allowed, and of one more; letters of one and of three bytes.
FITTING = ["a" * MAX_NAME_BYTES, "木" * (MAX_NAME_BYTES // 3) + "a"]
LONG = [name + "a" for name in FITTING]


@pytest.mark.parametrize("name", FITTING)
def test_a_name_of_256_bytes_is_taken(name: str) -> None:
    assert len(name.encode()) == MAX_NAME_BYTES == 256
    WorkerServer("127.0.0.1:0", name=name, cache_dir=None)
    assert _unfit_names(worker_pb2.DescribeResponse(node=common_pb2.NodeInfo(name=name))) == ""


@pytest.mark.parametrize("name", LONG)
def test_a_worker_refuses_a_longer_name_of_its_own(name: str) -> None:
    with pytest.raises(HearthError, match="--name has 257 bytes; at most 256") as error:
        WorkerServer("127.0.0.1:0", name=name, cache_dir=None)
    assert error.value.reason == Reason.BAD_SETTING


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize(
    "field", ["name", "version", "instruction_set", "architecture", "instance", "held_by"]
)
def test_a_root_refuses_a_worker_with_a_longer_one(field: str, name: str) -> None:
    answer = worker_pb2.DescribeResponse()
    setattr(answer if field in ("instance", "held_by") else answer.node, field, name)
    assert "has 257 bytes, and at most 256 are allowed" in _unfit_names(answer)


@pytest.mark.parametrize("character", ["\n", "\t", "\r", "\x1b", "\x85", "\u2028", "\u202e"])
@pytest.mark.parametrize(
    "field", ["name", "version", "instruction_set", "architecture", "instance"]
)
def test_a_root_refuses_a_worker_whose_names_could_forge_lines(field: str, character: str) -> None:
    answer = worker_pb2.DescribeResponse()
    forged = f"pi{character}worker x (10.0.0.9:7717) [static]: in"
    setattr(answer if field == "instance" else answer.node, field, forged)
    problem = _unfit_names(answer)
    assert "not printable" in problem
    assert problem.isprintable()


def test_the_name_of_a_root_that_holds_a_worker_makes_no_other_root_refuse_it() -> None:
    assert _unfit_names(worker_pb2.DescribeResponse(held_by="nas\nx")) == ""
    with pytest.raises(HearthError, match="printable"):
        LeaseState(1.0).take(LeaseId("id", "nas\nx", 1), 0.0)


def test_a_worker_refuses_a_name_that_could_forge_lines() -> None:
    with pytest.raises(HearthError, match=r"--name is 'pi\\nx'; ") as error:
        WorkerServer("127.0.0.1:0", name="pi\nx", cache_dir=None)
    assert error.value.reason == Reason.BAD_SETTING


@pytest.mark.parametrize(("wanted", "warns"), [(None, False), (1, False), (4, False), (5, True)])
def test_more_threads_than_cores_are_warned_of(
    wanted: int | None,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(system, "cores", lambda: 4)
    common.check_threads(wanted)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert (f"--threads {wanted} is more than the 4 cores here" in shown.err) is warns
