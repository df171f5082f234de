"""Two workers for the tests that compare with transformers."""

from collections.abc import Iterator

import family_parity
import pytest


@pytest.fixture(scope="module")
def addresses() -> Iterator[list[str]]:
    yield from family_parity.workers()
