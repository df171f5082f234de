"""Whose fault a broken mesh is: what ranks say of each other, and what follows."""

from __future__ import annotations

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.blame import culprits, explain
from hearth.root.cluster.links import WorkerLink


@pytest.mark.parametrize(
    ("said", "by", "rank", "found"),
    [
        # One says that another is silent, and nobody else says anything.
        ({1: 2}, 1, 2, (1, 2)),
        ({0: 2}, 0, 2, (2, 0)),
        # A stopped one is silent to all.
        ({0: 2, 1: 2}, 1, 2, (2, 0)),
        ({0: 2, 1: 2}, 0, 2, (2, 0)),
        # A cut cable: both say so, and whoever else hears of it hears of those two.
        ({1: 2, 2: 1}, 1, 2, (1, 2)),
        ({1: 2, 2: 1}, 2, 1, (1, 2)),
        ({0: 1, 1: 2, 2: 1}, 0, 1, (1, 2)),
        ({0: 1, 1: 2, 2: 1, 3: 1}, 3, 1, (1, 2)),
        ({0: 3, 3: 1, 1: 2}, 0, 3, (1, 2)),
        # Only one of them noticed so far.
        ({0: 1, 1: 2}, 0, 1, (1, 2)),
        # The cable between a worker and the root: it breaks the mesh, not gRPC.
        ({1: 0}, 1, 0, (1, 0)),
        ({0: 1, 1: 0}, 0, 1, (1, 0)),
        # What is no rank of another.
        ({1: 1}, 1, 1, (1, 0)),
    ],
)
def test_who_it_was(said: dict[int, int], by: int, rank: int, found: tuple[int, int]) -> None:
    assert culprits(said, by, rank) == found


def links(*ended: HearthError | None) -> list[WorkerLink]:
    made = []
    for number, error in enumerate(ended, 1):
        link = WorkerLink(f"127.0.0.1:{number}")
        link.ended = error
        made.append(link)
    return made


def unheard(by: int, rank: object) -> HearthError:
    message = f"worker 127.0.0.1:{by}: rank {rank} is lost: timed out"
    return HearthError(Reason.PEER_LOST, message, {"rank": rank, "worker": f"127.0.0.1:{by}"})


def test_both_of_two_are_named() -> None:
    error = explain(links(unheard(1, 2), unheard(2, 1)), 0, 1, 2, "rank 2 is lost")
    assert error.reason == "PEER_LOST"
    assert error.metadata == {"worker": "127.0.0.1:1", "peer": "127.0.0.1:2"}
    assert "worker 127.0.0.1:1 and worker 127.0.0.1:2 do not reach each other" in error.message
    assert "timed out" in error.message


def test_who_says_of_itself_what_it_was_is_believed() -> None:
    stopping = HearthError(Reason.SHUTTING_DOWN, "it stops", {"worker": "127.0.0.1:2"})
    assert explain(links(unheard(1, 2), stopping), 0, 1, 2, "rank 2 is lost") is stopping


def test_one_that_is_silent_to_the_root_too_is_lost() -> None:
    error = explain(links(unheard(1, 2), None), 2, 1, 2, "rank 2 did not answer")
    assert error.reason == "WORKER_LOST"
    assert error.metadata == {"worker": "127.0.0.1:2"}


@pytest.mark.parametrize("rank", ["", "9", "-1", "two"])
def test_a_rank_that_there_is_not(rank: str) -> None:
    error = explain(links(unheard(1, rank), None), 0, 1, 9, "rank 9 is lost")
    assert error.reason in ("WORKER_LOST", "PEER_LOST")
    assert error.message
