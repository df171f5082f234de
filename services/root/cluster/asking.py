"""Asks workers what they are, several at once, and turns each answer into an event."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hearth.common.errors import HearthError, Reason
from hearth.common.security import Security
from hearth.root.cluster.links import WorkerLink
from hearth.root.membership.events import (
    PENDING,
    Described,
    Event,
    Leaving,
    Refused,
    Unreachable,
)
from hearth.v1 import worker_pb2

# Workers asked at once.
_ASKERS = 8

# (event, why the worker cannot be used where that is so); called in any thread.
Answered = Callable[[Event, HearthError | None], None]


class Asker:
    """Asks in threads of its own. `ask` and `stop` are for one thread."""

    def __init__(self, root_id: str, security: Security | None, answered: Answered) -> None:
        """root_id: of the leases that the caller holds. Each question is answered once."""
        self._root_id = root_id
        self._security = security
        self._answered = answered
        self._pool = ThreadPoolExecutor(_ASKERS, "describe")
        self._open: set[WorkerLink] = set()

    def ask(self, address: str) -> None:
        """Ask the worker at `address`; returns at once."""
        self._pool.submit(self._ask, address)

    def stop(self) -> None:
        """End the questions that are under way."""
        for link in list(self._open):
            link.close()
        self._pool.shutdown(cancel_futures=True)

    def _ask(self, address: str) -> None:
        link: WorkerLink | None = None
        try:
            link = WorkerLink(address, self._security)
            self._open.add(link)
            answer = link.describe(self._root_id)
        except HearthError as error:
            self._answered(_failed(address, error), error)
        except Exception as error:  # each question is answered once
            failure = HearthError(Reason.WORKER_UNREACHABLE, f"{type(error).__name__}: {error}")
            self._answered(_failed(address, failure), failure)
        else:
            self._answered(*_described(address, answer))
        finally:
            if link is not None:
                self._open.discard(link)
                link.close()


def _failed(address: str, error: HearthError) -> Event:
    problem = without_name(error.message, address)
    if error.reason in (Reason.WORKER_UNREACHABLE, Reason.CANCELLED):
        return Unreachable(PENDING, address, problem)
    if error.reason == Reason.SHUTTING_DOWN:
        return Leaving(PENDING, address, problem)
    return Refused(PENDING, address, problem)


def without_name(message: str, address: str) -> str:
    """A message about the worker at `address` without its name, which stands before a reason."""
    return re.sub(rf"^worker (?:[^()]* \()?{re.escape(address)}\)?:? ", "", message, count=1)


def _described(
    address: str, answer: worker_pb2.DescribeResponse
) -> tuple[Event, HearthError | None]:
    if answer.held_by and not answer.held_by_caller:
        problem = f"busy: root {answer.held_by!r} holds it"
        named = f"worker {answer.node.name} ({address}) is {problem}"
        return Refused(PENDING, address, problem), HearthError(Reason.WORKER_BUSY, named)
    if answer.ending:
        problem = "a step of its last plan is still running"
        named = f"worker {answer.node.name} ({address}): {problem}"
        return Refused(PENDING, address, problem), HearthError(Reason.WORKER_BUSY, named)
    node = answer.node
    room = node.memory_available_bytes
    return Described(PENDING, address, node.name, answer.instance, room), None
