"""Places of what `make clients` installs, and the scripted model that answers the clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving_fakes import EOS, TOOL_TEMPLATE, FakeRunner, NextToken, Root

from hearth.common.candidates import WHOLE_ROWS, Candidates
from hearth.common.errors import HearthError, Reason
from hearth.root.scheduling.batch import Batch, StepOutput

INSTALLED = Path(__file__).resolve().parents[1] / "build" / "clients"
PYTHON = INSTALLED / "venv" / "bin" / "python"
NODE = INSTALLED / "node"
ANSWER = "I am a small model, and I live beside the hearth."


def says(history: tuple[int, ...]) -> int:
    """The next token of ANSWER after the template's last turn."""
    return _next(_text(history).rpartition(b"[assistant]")[2], ANSWER)


def calls(*wanted: tuple[str, Mapping[str, Any]]) -> NextToken:
    """Next tokens that call these functions (name, arguments) and, behind their results, ANSWER.

    A prompt whose tools are others, such as that for a title, gets ANSWER at once.
    """
    made = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in wanted]
    text = "".join(f"<tool_call>\n{each}\n</tool_call>" for each in made)
    names = [f"[tool]{name}[".encode() for name, _ in wanted]

    def next_token(history: tuple[int, ...]) -> int:
        prompt, _, said = _text(history).rpartition(b"[assistant]")
        answered = b"[tool]" in prompt.rpartition(b"[user]")[2]
        offered = all(name in prompt for name in names)
        return _next(said, ANSWER if answered or not offered else text)

    return next_token


def _text(history: tuple[int, ...]) -> bytes:
    return bytes(token for token in history if token < 256)


def _next(said: bytes, text: str) -> int:
    data = text.encode()
    return data[len(said)] if len(said) < len(data) else EOS


class Lossy(FakeRunner):
    """Loses its cluster once, in the middle of an answer."""

    lost = False
    # Steps before it.
    steps = 12

    def run(self, batch: Batch, candidates: Candidates = WHOLE_ROWS) -> StepOutput:
        if not self.lost and len(self.batches) == self.steps:
            self.lost = True
            raise HearthError(Reason.WORKER_LOST, "worker pi2 is lost")
        return super().run(batch, candidates)


def root_for(runner: FakeRunner, context_size: int = 200_000, **options: Any) -> Root:
    """A root with room for the prompts of agents: 80 KB, where a byte is a token."""
    runner.page_size = 64
    runner.__post_init__()
    limits = {"context_size": context_size, "max_pages": 16384, "page_size": runner.page_size}
    limits |= {"max_step_tokens": context_size}
    return Root(runner, http=True, chat_template=TOOL_TEMPLATE, **(limits | options))


def prompts(root: Root) -> str:
    """The text of all tokens that were computed."""
    tokens = (token for batch in root.runner.batches for token in batch.tokens)
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


@contextmanager
def formed_again(root: Root, runner: Lossy) -> Iterator[None]:
    """Lets the cluster of a Lossy run again once it is lost; it must be lost within the block.

    Where the root waits for it, that is at once; else once its answers have failed.
    """
    over = threading.Event()

    def form_again() -> None:
        while not over.wait(0.05):
            if runner.lost and (root.pauses or not root.frontend.open_answers):
                root.engine.resume()
                return

    thread = threading.Thread(target=form_again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert runner.lost
