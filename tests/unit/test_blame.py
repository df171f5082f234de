"""Which rank broke the mesh: the ranks' reports, and the cause that follows."""

from __future__ import annotations

import threading

import pytest

from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.blame import Worker, culprits, explain
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.reports import Reports, refine
from hearth.root.membership.apart import ROOT


@pytest.mark.parametrize(
    ("said", "by", "rank", "found"),
    [
        # One says that another is silent, and nobody else says anything.
        ({1: 2}, 1, 2, (1, 2)),
        ({0: 2}, 0, 2, (2,)),
        # A stopped one is silent to all.
        ({0: 2, 1: 2}, 1, 2, (2,)),
        ({0: 2, 1: 2}, 0, 2, (2,)),
        # A cut cable: both report it, and later reports lead to those two.
        ({1: 2, 2: 1}, 1, 2, (1, 2)),
        ({1: 2, 2: 1}, 2, 1, (1, 2)),
        ({0: 1, 1: 2, 2: 1}, 0, 1, (1, 2)),
        ({0: 1, 1: 2, 2: 1, 3: 1}, 3, 1, (1, 2)),
        ({0: 3, 3: 1, 1: 2}, 0, 3, (1, 2)),
        # Only one of them noticed so far.
        ({0: 1, 1: 2}, 0, 1, (1, 2)),
        # The cable between a worker and the root: it breaks the mesh, not gRPC.
        ({1: 0}, 1, 0, (0, 1)),
        ({0: 1, 1: 0}, 0, 1, (0, 1)),
        ({0: 1, 1: 0, 2: 1}, 2, 1, (0, 1)),
        ({0: 2, 1: 0, 2: 1}, 0, 2, (0, 1)),
        # A report of a rank about itself.
        ({1: 1}, 1, 1, (1,)),
    ],
)
def test_who_it_was(said: dict[int, int], by: int, rank: int, found: tuple[int, ...]) -> None:
    assert culprits(said, by, rank) == found


@pytest.mark.parametrize(
    ("said", "by", "rank", "found"),
    [
        ({1: 0}, 1, 0, (0, 1)),
        ({0: 1, 1: 0}, 0, 1, (0, 1)),
        ({0: 1}, 0, 1, (0, 1)),
        ({2: 1, 1: 0}, 2, 1, (0, 1)),
    ],
)
def test_in_a_stage_without_the_root_rank_0_is_a_worker(
    said: dict[int, int], by: int, rank: int, found: tuple[int, ...]
) -> None:
    assert culprits(said, by, rank, root=None) == found
    workers = [Worker(rank, f"127.0.0.1:{rank}", f"pi{rank}") for rank in (0, 1, 2)]
    reports = {of: unheard(of, whom) for of, whom in said.items()}
    error = explain(workers, reports, 0, by, rank, f"rank {rank} is lost")
    assert error.metadata == {"worker": "127.0.0.1:0", "peer": "127.0.0.1:1"}


WORKERS = [Worker(number, f"127.0.0.1:{number}", f"127.0.0.1:{number}") for number in (1, 2)]


def ended(*reports: HearthError | None) -> dict[int, HearthError]:
    """By rank, from rank 1 on."""
    return {rank: report for rank, report in enumerate(reports, 1) if report is not None}


def unheard(by: int, rank: object) -> HearthError:
    message = f"worker 127.0.0.1:{by}: rank {rank} is lost: timed out"
    return HearthError(Reason.PEER_LOST, message, {"rank": rank, "worker": f"127.0.0.1:{by}"})


def test_both_of_two_are_named() -> None:
    error = explain(WORKERS, ended(unheard(1, 2), unheard(2, 1)), 0, 1, 2, "rank 2 is lost")
    assert error.reason == "PEER_LOST"
    assert error.metadata == {"worker": "127.0.0.1:1", "peer": "127.0.0.1:2"}
    assert "between worker 127.0.0.1:1 and worker 127.0.0.1:2 does not work" in error.message
    assert "timed out" in error.message


def test_who_says_of_itself_what_it_was_is_believed() -> None:
    stopping = HearthError(Reason.SHUTTING_DOWN, "it stops", {"worker": "127.0.0.1:2"})
    assert explain(WORKERS, ended(unheard(1, 2), stopping), 0, 1, 2, "rank 2 is lost") is stopping


def test_one_that_is_silent_to_the_root_too_is_lost() -> None:
    error = explain(WORKERS, ended(unheard(1, 2), None), 2, 1, 2, "rank 2 did not answer")
    assert error.reason == "WORKER_LOST"
    assert error.metadata == {"worker": "127.0.0.1:2"}


@pytest.mark.parametrize("rank", ["", "9", "-1", "two"])
def test_a_rank_that_there_is_not(rank: str) -> None:
    error = explain(WORKERS, ended(unheard(1, rank), None), 0, 1, 9, "rank 9 is lost")
    assert error.reason in ("WORKER_LOST", "PEER_LOST")
    assert error.message


def test_the_cause_is_found_once_for_all_who_ask() -> None:
    reports = Reports(WORKERS, seconds=60)
    found: list[HearthError] = []
    waiting = [
        threading.Thread(target=lambda by=by, of=of: found.append(reports.cause(by, of, "lost")))
        for by, of in ((1, 2), (2, 1))
    ]
    for thread in waiting:
        thread.start()
    reports.add("127.0.0.1:1", unheard(1, 2))
    reports.add("somebody:else", unheard(1, 2))
    assert not found
    reports.add("127.0.0.1:2", unheard(2, 1))
    for thread in waiting:
        thread.join(30)
    assert len(found) == 2
    assert found[0] is found[1]
    assert found[0].metadata == {"worker": "127.0.0.1:1", "peer": "127.0.0.1:2"}


def test_a_report_of_a_rank_about_itself_ends_the_search() -> None:
    reports = Reports(WORKERS, seconds=60)
    stopping = HearthError(Reason.SHUTTING_DOWN, "it stops", {"worker": "127.0.0.1:2"})
    reports.add("127.0.0.1:2", stopping)
    assert reports.cause(1, 2, "rank 2 is lost").message == stopping.message


def test_a_cause_that_is_known_by_another_way_ends_the_search() -> None:
    reports = Reports(WORKERS, seconds=60)
    late = HearthError(Reason.DEADLINE, "a step took too long")
    reports.settle(late)
    reports.settle(HearthError(Reason.CLUSTER_NOT_READY, "later"))
    assert reports.cause(0, 1, "rank 1 is lost").message == late.message


def test_reports_that_never_come_are_not_waited_for_long() -> None:
    reports = Reports(WORKERS, seconds=0.01)
    reports.unheard(2)
    assert reports.cause(0, 2, "rank 2 is lost").metadata == {"worker": "127.0.0.1:2"}
    # What comes later changes nothing.
    reports.add("127.0.0.1:1", unheard(1, 2))
    assert reports.cause(1, 2, "rank 2 is lost").reason == "WORKER_LOST"


def told(reports: Reports, by: int, rank: int, late: float | None) -> HearthError:
    """The refined cause, where both streams are open."""
    links = [WorkerLink(worker.address) for worker in WORKERS]
    try:
        return refine(links, reports, reports.cause(by, rank, "timed out"), "timed out", late)
    finally:
        for link in links:
            link.close()


def test_a_worker_that_the_root_hears_by_grpc_alone_is_apart_from_it() -> None:
    reports = Reports(WORKERS, seconds=0.01)
    reports.unheard(2)
    cause = told(reports, 0, 2, None)
    assert (cause.reason, cause.metadata) == (
        "PEER_LOST",
        {"worker": "127.0.0.1:2", "peer": ROOT},
    )


def test_a_worker_that_reports_the_root_is_apart_from_it() -> None:
    reports = Reports(WORKERS, seconds=0.01)
    reports.add("127.0.0.1:2", unheard(2, 0))
    assert told(reports, 2, 0, None).metadata == {"worker": "127.0.0.1:2", "peer": ROOT}


@pytest.mark.parametrize("root_hears_1", [True, False])
def test_the_only_one_without_a_report_at_a_deadline_hangs(root_hears_1: bool) -> None:
    """Worker 1 waits for worker 2, and the root for one of them."""
    reports = Reports(WORKERS, seconds=0.01)
    reports.unheard(2 if root_hears_1 else 1)
    reports.add("127.0.0.1:1", unheard(1, 2))
    cause = told(reports, 1, 2, 5.0)
    assert (cause.reason, cause.metadata) == ("WORKER_UNFIT", {"worker": "127.0.0.1:2"})
    assert "within 5 s (--step-seconds), though gRPC reaches it" in cause.message


def test_two_that_reported_each_other_stay_a_pair_at_a_deadline() -> None:
    reports = Reports(WORKERS, seconds=0.01)
    reports.add("127.0.0.1:1", unheard(1, 2))
    reports.add("127.0.0.1:2", unheard(2, 1))
    assert told(reports, 1, 2, 5.0).reason == "PEER_LOST"


def test_reports_hold_no_frames() -> None:
    reports = Reports(WORKERS, seconds=0.01)
    try:
        raise unheard(1, 2)
    except HearthError as error:
        reports.add("127.0.0.1:1", error)
        reports.settle(error)
        kept = [*reports._reports.values(), reports._cause]
    assert [report.__traceback__ for report in kept if report is not None] == [None, None]
