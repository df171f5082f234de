"""Places and turns of clients: one client can take most of what there is, never the rest."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.errors import HearthError
from hearth.common.logging import MAX_LINES, WINDOW_SECONDS, _Quiet
from hearth.root.api.fairness import Places, Turns


def taken(places: Places, client: str, most: int = 10_000) -> int:
    """Places that a client gets, until it is refused."""
    for count in range(most):
        try:
            places.take(client)
        except HearthError as error:
            assert error.reason == "QUEUE_FULL"
            return count
    return most


def test_the_last_quarter_is_for_clients_with_few() -> None:
    places = Places(256, "streams")
    assert taken(places, "greedy") == 192
    assert taken(places, "other") == 32
    with pytest.raises(HearthError, match="192 streams of this client are open"):
        places.take("greedy")
    assert taken(places, "third") == 32
    with pytest.raises(HearthError, match="256 streams are open"):
        places.take("fourth")
    places.give_back("greedy")
    places.take("fourth")


def test_few_places_are_all_for_anyone() -> None:
    for total in (1, 2, 3):
        assert taken(Places(total, "streams"), "only") == total


@given(
    total=st.integers(1, 40),
    steps=st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=200),
)
def test_places_add_up(total: int, steps: list[tuple[str, bool]]) -> None:
    places, mine = Places(total, "streams"), dict.fromkeys("abcde", 0)
    for client, take in steps:
        if take:
            crowded = sum(mine.values()) >= total - total // 4
            allowed = sum(mine.values()) < total
            allowed = allowed and not (crowded and mine[client] >= max(1, total // 8))
            assert (taken(places, client, 1) == 1) == allowed
            mine[client] += allowed
        elif mine[client]:
            places.give_back(client)
            mine[client] -= 1


@given(
    at_once=st.integers(1, 4),
    of_each=st.integers(1, 4),
    calls=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["run", "cancel"]))),
)
def test_turns_are_bounded_and_all_come(
    at_once: int, of_each: int, calls: list[tuple[str, str]]
) -> None:
    async def check() -> None:
        turns, running, most = Turns(at_once, of_each), [], 0
        done: list[str] = []

        async def call(client: str) -> None:
            nonlocal most
            async with turns.turn(client):
                running.append(client)
                most = max(most, len(running))
                assert running.count(client) <= of_each
                try:
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                finally:
                    running.remove(client)
                done.append(client)

        tasks = [(asyncio.create_task(call(client)), fate) for client, fate in calls]
        await asyncio.sleep(0)
        for task, fate in tasks:
            if fate == "cancel":
                task.cancel()
        ended = await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert most <= at_once
        whole = [e for e in ended if not isinstance(e, asyncio.CancelledError)]
        assert whole == [None] * len(done)
        assert len(done) >= sum(fate == "run" for _, fate in calls)
        async with asyncio.timeout(5), turns.turn("a"):  # nothing was lost
            pass

    asyncio.run(check())


def test_a_client_that_waits_alone_does_not_wait_for_a_long_queue() -> None:
    async def order() -> list[str]:
        turns, begun = Turns(1, 1), []

        async def call(client: str) -> None:
            async with turns.turn(client):
                begun.append(client)
                await asyncio.sleep(0)

        greedy = [asyncio.create_task(call("greedy")) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.gather(asyncio.create_task(call("other")), *greedy)
        return begun

    begun = asyncio.run(order())
    assert begun.index("other") <= 5
    assert len(begun) == 51


def test_libraries_log_short_and_little() -> None:
    now = 0.0
    quiet = _Quiet(lambda: now)

    def record(name: str, level: int = logging.ERROR) -> logging.LogRecord:
        try:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        except UnicodeDecodeError as error:
            info = (type(error), error, error.__traceback__)
            return logging.LogRecord(name, level, "f", 1, "call %s", ("x",), info)

    passed = [r for r in (record("grpc._cython.cygrpc") for _ in range(1000)) if quiet.filter(r)]
    assert len(passed) == MAX_LINES
    assert passed[0].exc_info is None
    assert passed[0].getMessage().startswith("call x: UnicodeDecodeError: 'utf-8' codec")
    ours = record("hearth.root")
    assert quiet.filter(ours)
    assert ours.exc_info is not None
    now += WINDOW_SECONDS
    assert quiet.filter(record("asyncio"))
