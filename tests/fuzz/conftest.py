"""Counts the examples of `make fuzz`, and holds them to their number."""

from __future__ import annotations

from collections.abc import Iterator

import fuzzing
import pytest


@pytest.fixture(scope="session", autouse=True)
def as_many_as_wanted(request: pytest.FixtureRequest) -> Iterator[None]:
    """At the end of a run of this whole folder there were FUZZ_EXAMPLES examples."""
    yield
    if fuzzing.WANTED and not request.session.testsfailed:
        print(f"\nfuzz: {fuzzing.examples} examples")
        assert fuzzing.examples >= fuzzing.WANTED
