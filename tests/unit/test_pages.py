"""The page pool: every page has one owner or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.root.scheduling.pages import OutOfPages, PagePool
from hearth.root.scheduling.residency import Residency


def enter(pool: PagePool, page: int, *tokens: int) -> None:
    """Makes a page findable, as the first one of a prefix."""
    start = pool.prefix.start(b"")
    assert pool.prefix.add(page, pool.prefix.key(start, tokens), start, tokens)


def test_all_or_nothing() -> None:
    pool = PagePool(4)
    first = pool.allocate(3)
    with pytest.raises(OutOfPages, match="2 pages requested, 1 of 4 available"):
        pool.allocate(2)
    assert pool.free == 1
    pool.check({1: first})


def test_a_page_is_free_when_its_last_holder_released_it() -> None:
    pool = PagePool(2)
    pages = pool.allocate(1)
    pool.hold(pages)
    pool.check({1: pages, 2: pages})
    pool.release(pages)
    assert pool.free == 1
    pool.release(pages)
    with pytest.raises(ValueError, match="page 0 was released, but no sequence holds it"):
        pool.release(pages)
    with pytest.raises(ValueError, match="page 0 is free"):
        pool.hold(pages)
    assert pool.free == 2


def test_check_finds_differences() -> None:
    pool = PagePool(3)
    pages = pool.allocate(2)
    with pytest.raises(RuntimeError, match="holders of pages differ"):
        pool.check({1: pages, 2: pages[:1]})
    with pytest.raises(RuntimeError, match="holders of pages differ"):
        pool.check({1: pages[:1]})
    with pytest.raises(RuntimeError, match="holds a page twice"):
        pool.check({1: pages * 2})
    enter(pool, 2, 7)
    with pytest.raises(RuntimeError, match=r"pages \[2\] are found but free"):
        pool.check({1: pages})


def test_a_pool_has_pages() -> None:
    with pytest.raises(ValueError, match="at least 1 page, not 0"):
        PagePool(0)


def test_pages_with_a_prefix_are_kept_until_their_place_is_needed_the_oldest_first() -> None:
    pool = PagePool(4)
    pages = pool.allocate(3)
    for page in pages:
        enter(pool, page, page)
    pool.release(pages[:1])
    pool.release(pages[1:])
    assert (pool.free, pool.kept, pool.available) == (1, 3, 4)
    pool.hold([0])  # used again: no longer the oldest
    pool.release((0,))
    # Of pages released together, the last of the prefix goes first.
    assert pool.allocate(2) == (2, 3)
    assert [page in pool.prefix for page in pages] == [True, True, False]
    assert pool.allocate(1) == (1,)
    assert pool.evictions == 2
    pool.check({1: (2, 3), 2: (1,)})
    pool.forget_all()
    assert (pool.free, pool.kept, len(pool.prefix)) == (1, 0, 0)


def test_kept_pages_expire_after_some_periods() -> None:
    pool = PagePool(4)
    pages = pool.allocate(2)
    for page in pages:
        enter(pool, page, page)
    pool.release(pages[:1])
    pool.next_period(2)
    pool.release(pages[1:])
    pool.next_period(2)
    assert pool.kept == 2
    pool.next_period(2)
    assert (pool.kept, 1 in pool.prefix) == (1, True)
    pool.next_period(2)
    assert (pool.kept, pool.evictions) == (0, 2)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["take", "enter", "share", "end", "forget", "period"]),
        st.integers(0, 5),
        st.integers(0, 12),
    ),
    max_size=80,
)


@given(st.integers(1, 40), ACTIONS)
def test_any_history(pages: int, actions: list[tuple[str, int, int]]) -> None:
    """No page is free and held or kept; kept pages go in order of their last use."""
    pool = PagePool(pages)
    held: dict[int, tuple[int, ...]] = {}
    # Kept pages in the order in which they must go.
    kept: list[int] = []
    names = iter(range(1 << 20))
    for action, owner, count in actions:
        mine = held.get(owner, ())
        if action == "take" and count <= pool.available:
            kept = kept[max(0, count - pool.free) :]
            held[owner] = mine + pool.allocate(count)
        elif action == "enter" and mine and mine[count % len(mine)] not in pool.prefix:
            enter(pool, mine[count % len(mine)], next(names))
        elif action == "share" and len(pool.prefix):
            page = sorted(pool.prefix)[count % len(pool.prefix)]
            if page not in mine:
                kept = [each for each in kept if each != page]
                pool.hold([page])
                held[owner] = (*mine, page)
        elif action == "end":
            held.pop(owner, None)
            others = {page for each in held.values() for page in each}
            gone = [page for page in reversed(mine) if page not in others]
            kept += [page for page in gone if page in pool.prefix]
            pool.release(mine)
        elif action == "forget" and mine:
            pool.forget(mine)
        elif action == "period":
            pool.next_period(1 << 20)
        pool.check(held)
        assert pool.available == pages - len({page for each in held.values() for page in each})
        assert pool.kept == len(kept)
        assert all(page in pool.prefix for page in kept)


def test_low_pages_are_used_first() -> None:
    pool = PagePool(6)
    first, second = pool.allocate(2), pool.allocate(2)
    pool.release(first)
    assert pool.allocate(3) == (0, 1, 4)
    assert second == (2, 3)


def test_pages_that_a_burst_needed_are_given_back_after_a_quiet_period() -> None:
    pool, residency = PagePool(100), Residency(10.0)
    assert residency.due(pool) is None
    small = pool.allocate(3)
    assert residency.look(100.0, pool) is None
    burst = pool.allocate(50)
    pool.release(burst)
    assert residency.due(pool) == 110.0
    assert residency.look(109.9, pool) is None
    assert residency.look(110.0, pool) is None  # the burst was within this period
    assert residency.look(119.0, pool) is None
    assert residency.look(120.0, pool) == 3  # what a sequence still holds stays
    assert residency.look(130.0, pool) is None
    pool.release(small)
    assert residency.look(140.0, pool) is None
    assert residency.look(150.0, pool) == 0
    assert residency.due(pool) is None  # an idle engine does not wake up


TAKEN = (st.integers(0, 5), st.integers(1, 6), st.booleans(), st.booleans())


@given(st.lists(st.tuples(*TAKEN), max_size=40))
def test_no_page_that_is_held_or_kept_is_given_back(
    story: list[tuple[int, int, bool, bool]],
) -> None:
    pool, residency = PagePool(40), Residency(1.0, keep_periods=3)
    held: dict[int, tuple[int, ...]] = {}
    # Pages that have memory on a node: those allocated, less those given back.
    resident: set[int] = set()
    for moment, (owner, count, ends, entered) in enumerate(story):
        if ends:
            pool.release(held.pop(owner, ()))
        elif count <= pool.available:
            taken = pool.allocate(count)
            if entered:
                enter(pool, taken[0], moment)
            held[owner] = held.get(owner, ()) + taken
            resident.update(taken)
        first = residency.look(float(moment), pool)
        if first is not None:
            assert all(page < first for pages in held.values() for page in pages)
            assert all(page < first for page in pool.prefix)
            resident = {page for page in resident if page < first}
        pool.check(held)
    for owner in list(held):
        pool.release(held.pop(owner))
    for late in range(100, 110):
        first = residency.look(float(late), pool)
        if first is not None:
            resident = {page for page in resident if page < first}
    assert not resident
    assert residency.due(pool) is None
