"""The page pool: every page has one owner or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.root.scheduling.pages import OutOfPages, PagePool


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
