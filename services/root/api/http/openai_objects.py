"""The objects of OpenAI's chat completions and completions, whole and in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hearth.common import system
from hearth.root.api.answer import Answer
from hearth.root.api.http import streams
from hearth.root.api.http.call import EVENTS
from hearth.root.api.http.logprobs import ChatLogprobs, CompletionLogprobs
from hearth.root.api.http.requests import ENDED_BY_LENGTH
from hearth.root.api.http.timings import Timings, timings_of
from hearth.root.api.http.tools import new_call_id
from hearth.root.api.spoken import Ended, Part
from hearth.root.engine.mailbox import Delta, Done, Usage

if TYPE_CHECKING:
    from hearth.root.api.tools.events import ToolCall

Object = dict[str, Any]

_DONE = b"data: [DONE]\n\n"
# A text, as OpenAI's document has it: what computes the answers.
_FINGERPRINT = f"hearth-{system.version()}"


class Head:
    """The fields that every object of one answer has."""

    def __init__(self, id: str, created: int, model: str) -> None:
        self._fields = {"id": id, "created": created, "model": model}

    def object(self, kind: str) -> Object:
        """The beginning of an object."""
        return {**self._fields, "object": kind, "system_fingerprint": _FINGERPRINT}


def message_of_answer(answer: streams.Collected, old: bool = False) -> Object:
    """The message of a whole answer. old: a call as `function_call`."""
    message: Object = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.text or None
    if answer.calls and old:
        call = answer.calls[0]
        message["function_call"] = {"name": call.name, "arguments": call.arguments}
    elif answer.calls:
        message["tool_calls"] = [_call_object(call) for call in answer.calls]
    return message


def _call_object(call: ToolCall) -> Object:
    """A tool call with an id of its own."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": new_call_id("call_"), "type": "function", "function": function}


def finish_of(done: Done, old: bool = False) -> str:
    """OpenAI's finish_reason. old: calls are `function_call`."""
    if done.finish_reason in ENDED_BY_LENGTH:
        return "length"
    if isinstance(done, Ended) and done.called:
        return "function_call" if old else "tool_calls"
    return "stop"


def usage_of(prompts: Sequence[int], usages: Sequence[Usage]) -> Object:
    """OpenAI's usage. prompts: tokens of each prompt, however many answers it had.

    usages: of all answers, those to one prompt together.
    """
    prompt, made = sum(prompts), sum(usage.completion_tokens for usage in usages)
    # Every prompt counts once: with what was cached before its first answer began.
    choices = max(1, len(usages) // max(1, len(prompts)))
    firsts = (usages[begin : begin + choices] for begin in range(0, len(usages), choices))
    cached = sum(min(usage.cached_tokens for usage in answers) for answers in firsts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Chunks(ABC):
    """Chunks of choices, then the usage if it is asked for, then [DONE]."""

    content_type = EVENTS
    _kind = ""

    def __init__(
        self,
        head: Head,
        choices: int,
        prompt_tokens: int,
        usage: bool,
        timed: Sequence[Answer] = (),
    ) -> None:
        """timed: the answers whose parts have their times."""
        # Choices that have not ended, in order.
        self._open = dict.fromkeys(range(choices))
        self._base = head.object(self._kind)
        self._prompt_tokens = prompt_tokens
        self._usage = usage
        self._usages: dict[int, Usage] = {}
        self._timings = [Timings(answer) for answer in timed]

    def heartbeat(self) -> bytes:
        first = next(iter(self._open), None)
        return b"" if first is None else self._nothing(first)

    def done(self, index: int, done: Done) -> bytes:
        self._open.pop(index, None)
        self._usages[index] = done.usage
        return self._last(index, done)

    def end(self) -> bytes:
        if not self._usage:
            return _DONE
        usages = [self._usages[index] for index in sorted(self._usages)]
        usage = usage_of([self._prompt_tokens], usages)
        more = {"usage": usage, "timings": timings_of(usages[0])}
        return streams.event({**self._base, "choices": [], **more}) + _DONE

    def failed(self, error: Mapping[str, Any]) -> bytes:
        return streams.event(error)

    def progress(self, progress: Object) -> bytes:
        """A chunk with the progress of the prompt: no choice has anything new."""
        return streams.event({**self._base, "choices": [], "prompt_progress": progress})

    def _times(self, index: int, delta: Delta) -> Object | None:
        """The times once a part was made, where they are wanted."""
        return self._timings[index](len(delta.token_ids)) if self._timings else None

    @abstractmethod
    def _nothing(self, index: int) -> bytes:
        """A chunk of a choice without contents."""

    @abstractmethod
    def _last(self, index: int, done: Done) -> bytes:
        """The chunk that ends a choice."""

    def _chunk(self, choice: Object, more: Object | None = None) -> bytes:
        chunk = {**self._base, "choices": [choice], **(more or {})}
        if self._usage:
            chunk["usage"] = None
        return streams.event(chunk)


class ChatStream(Chunks):
    _kind = "chat.completion.chunk"

    def __init__(
        self,
        head: Head,
        logprobs: ChatLogprobs,
        choices: int,
        prompt_tokens: int,
        usage: bool,
        timed: Sequence[Answer] = (),
        old: bool = False,
    ) -> None:
        """old: calls are `function_call`."""
        super().__init__(head, choices, prompt_tokens, usage, timed)
        self._logprobs = logprobs
        self._choices = choices
        self._old = old
        # Calls of each choice so far.
        self._calls: dict[int, int] = {}

    def begin(self) -> bytes:
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._part(index, role) for index in range(self._choices))

    def _nothing(self, index: int) -> bytes:
        return self._part(index, {"content": ""})

    def delta(self, index: int, delta: Part) -> bytes:
        logprobs = self._logprobs(delta.scores)
        timings = self._times(index, delta)
        if delta.call is not None:
            return self._call(index, delta.call, logprobs, timings)
        if delta.reasoning:
            return self._part(index, {"reasoning_content": delta.reasoning}, logprobs, timings)
        if not delta.text and not delta.scores:
            return b""
        return self._part(index, {"content": delta.text}, logprobs, timings)

    def _call(
        self, index: int, call: ToolCall, logprobs: Object | None, timings: Object | None
    ) -> bytes:
        """A call: its name first, then its arguments."""
        if self._old:
            first: Object = {"function_call": {"name": call.name, "arguments": ""}}
            more: Object = {"function_call": {"arguments": call.arguments}}
            return self._part(index, first, logprobs, timings) + self._part(index, more)
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        made = _call_object(call)
        named = {**made, "function": {"name": call.name, "arguments": ""}}
        arguments = {"index": number, "function": {"arguments": call.arguments}}
        return self._part(
            index, {"tool_calls": [{"index": number, **named}]}, logprobs, timings
        ) + self._part(index, {"tool_calls": [arguments]})

    def _last(self, index: int, done: Done) -> bytes:
        finish = finish_of(done, self._old)
        choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": finish}
        return self._chunk(choice, {"timings": timings_of(done.usage)})

    def _part(
        self,
        index: int,
        delta: Object,
        logprobs: Object | None = None,
        timings: Object | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._chunk(choice, None if timings is None else {"timings": timings})


class CompletionStream(Chunks):
    _kind = "text_completion"

    def __init__(
        self,
        head: Head,
        logprobs: Sequence[CompletionLogprobs],
        echoes: Sequence[str],
        prompt_tokens: int,
        usage: bool,
        timed: Sequence[Answer] = (),
    ) -> None:
        super().__init__(head, len(echoes), prompt_tokens, usage, timed)
        self._logprobs = logprobs
        self._echoes = echoes

    def begin(self) -> bytes:
        return b"".join(self._part(index, echo) for index, echo in enumerate(self._echoes))

    def _nothing(self, index: int) -> bytes:
        return self._part(index, "")

    def delta(self, index: int, delta: Delta) -> bytes:
        timings = self._times(index, delta)
        if not delta.text and not delta.scores:
            return b""
        return self._part(index, delta.text, self._logprobs[index](delta.scores), timings=timings)

    def _last(self, index: int, done: Done) -> bytes:
        return self._part(index, "", None, finish_of(done), timings_of(done.usage))

    def _part(
        self,
        index: int,
        text: str,
        logprobs: Object | None = None,
        finish: str | None = None,
        timings: Object | None = None,
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self._chunk(choice, None if timings is None else {"timings": timings})
