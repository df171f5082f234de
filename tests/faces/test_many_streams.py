"""Many streams at once through HTTP, some cancelled and some slow, while the cluster is lost."""

import asyncio
import threading
import time

from installed_clients import Lossy, formed_again
from serving_fakes import BOS, Root, expected, letters
from streaming_clients import run_clients

PROMPTS = ("once", "a dog", "the cat and the dog")
LENGTHS = (3, 20)
ROUNDS = 200


def test_every_stream_has_its_text_and_an_end() -> None:
    """The cluster is lost in the middle, too."""
    wanted = {
        (prompt, length): bytes(expected((BOS, *prompt.encode()), length)).decode()
        for prompt in PROMPTS
        for length in LENGTHS
    }
    runner = Lossy(letters, page_size=4)
    left = iter(range(ROUNDS))
    with Root(runner, http=True, any_model=True, max_pages=2048, pause_seconds=60) as root:
        with formed_again(root, runner):
            tally = asyncio.run(
                run_clients(root.url, 32, wanted, lambda: next(left, None) is not None, 0.001)
            )
        # Streams whose client has left end by themselves.
        end = time.monotonic() + 20
        while root.frontend.open_answers and time.monotonic() < end:
            threading.Event().wait(0.01)
        assert not root.frontend.open_answers
    assert not tally.wrong
    assert tally.done + tally.cancelled + tally.refused == ROUNDS
    assert tally.cancelled > 0
