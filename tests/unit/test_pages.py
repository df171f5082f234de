"""The page pool: every page has one owner or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.root.scheduling.pages import OutOfPages, PagePool
from hearth.root.scheduling.residency import Residency


def test_all_or_nothing() -> None:
    pool = PagePool(4)
    first = pool.allocate(1, 3)
    with pytest.raises(OutOfPages, match="2 pages requested, 1 of 4 free"):
        pool.allocate(2, 2)
    assert pool.free == 1
    pool.check({1: first})


def test_a_page_is_given_back_by_its_owner_once() -> None:
    pool = PagePool(2)
    pages = pool.allocate(1, 1)
    with pytest.raises(ValueError, match="page 0 belongs to 1, but 2 released it"):
        pool.release(2, pages)
    pool.release(1, pages)
    with pytest.raises(ValueError, match="belongs to None"):
        pool.release(1, pages)
    assert pool.free == 2


def test_check_finds_differences() -> None:
    pool = PagePool(3)
    pages = pool.allocate(1, 2)
    with pytest.raises(RuntimeError, match="held by both"):
        pool.check({1: pages, 2: pages[:1]})
    with pytest.raises(RuntimeError, match="owners differ"):
        pool.check({1: pages[:1]})
    with pytest.raises(RuntimeError, match="owners differ"):
        pool.check({})


def test_a_pool_has_pages() -> None:
    with pytest.raises(ValueError, match="at least 1 page, not 0"):
        PagePool(0)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=60))
def test_any_history(pages: int, steps: list[tuple[int, int]]) -> None:
    pool = PagePool(pages)
    held: dict[int, tuple[int, ...]] = {}
    for owner, count in steps:
        if count == 0:
            pool.release(owner, held.pop(owner, ()))
        elif count <= pool.free:
            held[owner] = held.get(owner, ()) + pool.allocate(owner, count)
        pool.check(held)
        assert pool.free == pages - sum(map(len, held.values()))


def test_low_pages_are_used_first() -> None:
    pool = PagePool(6)
    first, second = pool.allocate(1, 2), pool.allocate(2, 2)
    pool.release(1, first)
    assert pool.allocate(3, 3) == (0, 1, 4)
    assert second == (2, 3)


def test_pages_that_a_burst_needed_are_given_back_after_a_quiet_period() -> None:
    pool, residency = PagePool(100), Residency(10.0)
    assert residency.due(pool) is None
    small = pool.allocate(1, 3)
    assert residency.look(100.0, pool) is None
    burst = pool.allocate(2, 50)
    pool.release(2, burst)
    assert residency.due(pool) == 110.0
    assert residency.look(109.9, pool) is None
    assert residency.look(110.0, pool) is None  # the burst was within this period
    assert residency.look(119.0, pool) is None
    assert residency.look(120.0, pool) == 3  # what a sequence still holds stays
    assert residency.look(130.0, pool) is None
    pool.release(1, small)
    assert residency.look(140.0, pool) is None
    assert residency.look(150.0, pool) == 0
    assert residency.due(pool) is None  # an idle engine does not wake up


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.booleans()), max_size=40))
def test_no_page_that_is_held_is_given_back(story: list[tuple[int, int, bool]]) -> None:
    pool, residency = PagePool(40), Residency(1.0)
    held: dict[int, tuple[int, ...]] = {}
    # Pages that have memory on a node: those allocated, less those given back.
    resident: set[int] = set()
    for moment, (owner, count, ends) in enumerate(story):
        if ends:
            pool.release(owner, held.pop(owner, ()))
        elif count <= pool.free:
            taken = pool.allocate(owner, count)
            held[owner] = held.get(owner, ()) + taken
            resident.update(taken)
        first = residency.look(float(moment), pool)
        if first is not None:
            assert all(page < first for pages in held.values() for page in pages)
            resident = {page for page in resident if page < first}
        pool.check(held)
    for owner in list(held):
        pool.release(owner, held.pop(owner))
    for late in (100.0, 102.0):
        first = residency.look(late, pool)
        if first is not None:
            resident = {page for page in resident if page < first}
    assert not resident
    assert residency.due(pool) is None
