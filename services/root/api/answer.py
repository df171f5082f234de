"""One running request, as its reader sees it."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from hearth.common.errors import HearthError, Reason
from hearth.root.api.signals import Signal
from hearth.root.engine.mailbox import Delta, Done, Failed, Mailbox, Waiting
from hearth.root.engine.request import RequestHandle
from hearth.root.scheduling.batch import FinishReason

if TYPE_CHECKING:
    from hearth.root.api.tools.expected import Expected

log = logging.getLogger(__name__)


class Answer:
    """The events of one request: an async iterator over Delta and Waiting, then Done.

    Iterating raises HearthError when the request fails, and reason DEADLINE at the deadline. A
    slow reader gets merged deltas and holds up nobody. Leaving the `with` block ends the request:
    its sequence stops before the next step.
    """

    def __init__(
        self,
        request_id: str,
        deadline: float | None,
        on_close: Callable[["Answer"], object],
        client: str = "",
    ) -> None:
        """deadline: in the running loop's time, seconds; None for none. client: for the log."""
        self.request_id = request_id
        self._client = client
        self.prompt_tokens = 0
        # The form of its text, for a face that takes it apart; None: all of it is text.
        self.expected: Expected | None = None
        # Further tool calls are left out.
        self.one_call = False
        # The request is for no token: the one that the engine makes is left out.
        self.only_reads = False
        # Scores of the prompt's tokens that the reader is to have, then.
        self.prompt_scores = 0
        self.deadline = deadline
        self._on_close = on_close
        self._signal = Signal()
        self.mailbox = Mailbox(self._signal.set)
        self._handle: RequestHandle | None = None
        # The last event, once it is here, and whether the reader has it.
        self._end: Done | Failed | None = None
        self._read = False
        self._made = 0
        # Why the cluster is not ready, and what of it the reader knows.
        self._waiting = self._shown = ""
        self._reason: Callable[[], str] = lambda: ""
        self._changed = False
        # Of the mailbox, until the reader has it.
        self._taken: tuple[Delta | None, Done | Failed | None] | None = None
        self._created = time.perf_counter()
        self._closed = False

    def start(self, handle: RequestHandle, prompt_tokens: int) -> None:
        """The request is queued."""
        self._handle, self.prompt_tokens = handle, prompt_tokens

    @property
    def client(self) -> str:
        """The caller, for limits and the log."""
        return self._client

    @property
    def prefilled(self) -> int | None:
        """Positions of the prompt that were computed; None once there is a token."""
        if self._handle is None or self._made or self._end is not None:
            return None
        return min(self._handle.prefilled(), self.prompt_tokens)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the prefix cache had, as far as is known."""
        return self._handle.cached() if self._handle is not None else 0

    def watch(self, reason: Callable[[], str]) -> None:
        """Shows why the cluster is not ready, now and at changes; "" while it is."""
        self._reason = reason
        self._waiting = reason()

    def cluster_changed(self) -> None:
        """The reason may be another one. In any thread.

        It is asked for by the reader: notices of two changes may come in another order.
        """
        self._changed = True
        self._signal.set()

    def fail(self, error: HearthError) -> None:
        """End the request with `error`, unless it has ended."""
        self._end = self._end or Failed(error)
        self._cancel()
        self._signal.set()

    def close(self, error: BaseException | None = None) -> None:
        """End the request if it still runs, and write its line to the log, with `error` if any."""
        if not self._closed:
            self._closed = True
            if self._end is None and isinstance(error, HearthError):
                self._end = Failed(error)
            self._cancel()
            self._on_close(self)
            self._log()

    def __enter__(self) -> "Answer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Delta | Waiting | Done:
        if self._read or self._closed:
            raise StopAsyncIteration
        while self._end is None:
            if self._taken is None:
                self._taken = self.mailbox.take()
            # After the taking: what came before the tokens is shown before them.
            if self._changed:
                self._changed = False  # before it is asked for: a later change counts again
                self._waiting = self._reason()
            if self._waiting != self._shown:
                self._shown = self._waiting
                return Waiting(self._shown)
            (delta, end), self._taken = self._taken, None
            self._end = self._end or end
            if delta is not None and self.only_reads:
                delta = self._of_prompt(delta)
            if delta is not None:
                self._made += len(delta.token_ids)
                return delta
            if self._end is None:
                await self._wait()
        self._read = True
        if isinstance(self._end, Failed):
            raise self._end.error
        return _without_tokens(self._end) if self.only_reads else self._end

    def _of_prompt(self, delta: Delta) -> Delta | None:
        """The scores of the prompt in a delta; None without any."""
        scores = delta.scores[: self.prompt_scores]
        self.prompt_scores -= len(scores)
        return Delta("", (), scores) if scores else None

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout_at(self.deadline):
                await self._signal.wait()
        except TimeoutError:
            self.fail(past_deadline(f"{self._made} tokens were generated"))

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _log(self) -> None:
        fields: dict[str, object] = {
            "request_id": self.request_id,
            "client": self._client,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self._made,
            "seconds": round(time.perf_counter() - self._created, 3),
        }
        match self._end:
            case Done(finish_reason, usage):
                outcome = finish_reason.name
                fields |= {
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "queue_seconds": round(usage.queue_seconds, 3),
                    "prefill_seconds": round(usage.prefill_seconds, 3),
                    "decode_seconds": round(usage.decode_seconds, 3),
                }
                cost = (
                    f"queue {usage.queue_seconds:.3f} s, prefill {usage.prefill_seconds:.3f} s, "
                    f"decode {usage.decode_seconds:.3f} s"
                )
            case Failed(error):
                outcome, cost = error.reason, f"{fields['seconds']:.3f} s"
            case None:
                outcome, cost = str(Reason.CANCELLED), f"{fields['seconds']:.3f} s"
        fields["outcome"] = outcome
        log.info(
            "request %s%s: %d prompt tokens, %d generated; %s; %s",
            self.request_id,
            f" of {self._client}" if self._client else "",
            fields["prompt_tokens"],
            fields["completion_tokens"],
            cost,
            outcome,
            extra={"fields": fields},
        )


def _without_tokens(done: Done) -> Done:
    """The end of a request whose prompt was only read."""
    usage = replace(done.usage, completion_tokens=0, decode_seconds=0.0)
    return replace(done, finish_reason=FinishReason.LENGTH, usage=usage, stop=None)


def past_deadline(progress: str) -> HearthError:
    """Error for a request whose deadline passed."""
    return HearthError(
        Reason.DEADLINE, f"the deadline of the request passed: {progress}; give it a longer timeout"
    )
