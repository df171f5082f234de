"""OpenAI's responses, as Codex and newer clients of OpenAI use them. Nothing is stored."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from hearth.root.api.http import streams
from hearth.root.api.http.call import EVENTS, Call
from hearth.root.api.http.conversations import Message, call_of, in_turns, message_of, text_of
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.openai import refuse_tool_choice
from hearth.root.api.http.requests import (
    ENDED_BY_LENGTH,
    Services,
    Wanted,
    choose,
    max_tokens,
    running,
    sampling,
)
from hearth.root.api.prompt import Conversation
from hearth.root.engine.mailbox import Delta, Done, Usage

Object = dict[str, Any]

# Items of a conversation that need no place in the prompt.
_DROPPED = ("reasoning",)
# Metadata: pairs, characters of a name and of a value.
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512
_CALLS = ("function_call", "custom_tool_call")
_RESULTS = ("function_call_output", "custom_tool_call_output")


async def create(call: Call, services: Services) -> None:
    """POST /v1/responses."""
    body = await call.json()
    services, model = await choose(services, body.text("model"))
    if body.text("previous_response_id"):
        raise bad_request(
            "previous_response_id is given, and this root stores no responses: send the whole "
            "conversation as input",
            "previous_response_id",
        )
    refuse_tool_choice(body)
    _refuse_format(body)
    messages = await in_turns(_messages(body))
    if not messages:
        raise bad_request("input is an empty list; give a text or at least one message", "input")
    wanted = Wanted(sampling(services, body), max_tokens(body, "max_output_tokens"))
    made = _Response(call.id, model, body)
    async with running(call, services, [Conversation(messages)], wanted) as answers:
        if body.flag("stream"):
            await streams.send(call, answers, _Stream(made))
            return
        ((answer, done),) = await streams.collected(answers)
    await call.reply(made.ended(answer.text, done))


def _messages(body: Fields) -> Iterator[Message]:
    if instructions := text_of(body, "instructions"):
        yield {"role": "system", "content": instructions}
    given = body.values.get("input")
    if given is None or isinstance(given, str):  # OpenAI's own types make it optional
        yield {"role": "user", "content": given or ""}
        return
    for item in body.objects("input"):
        kind = item.text("type", "message")
        if kind == "message":
            yield message_of(item)
        elif kind in _CALLS:
            arguments = item.raw("arguments", "input")
            if arguments is not None and not isinstance(arguments, str):
                raise item.wrong("arguments", arguments, "a string of JSON")
            made = call_of(item.text("name"), arguments or "{}", item.text("call_id"))
            yield {"role": "assistant", "content": "", "tool_calls": [made]}
        elif kind in _RESULTS:
            result = text_of(item, "output")
            yield {"role": "tool", "content": result, "tool_call_id": item.text("call_id")}
        elif kind not in _DROPPED:
            place = item.place("type")
            raise bad_request(f"{place} is {kind[:40]!r}, which this root does not read", place)


def _refuse_format(body: Fields) -> None:
    text = body.child("text")
    form = text.child("format") if text is not None else None
    kind = form.text("type", "text") if form is not None else "text"
    if kind != "text":
        raise bad_request(
            f"text.format is of type {kind[:40]!r}, and this root makes text only", "text.format"
        )


def _metadata(body: Fields) -> Mapping[str, str]:
    """The caller's notes, which every response repeats: OpenAI's limits hold."""
    given = body.child("metadata")
    if given is None:
        return {}
    if len(given.values) > _MAX_PAIRS:
        raise bad_request(
            f"metadata has {len(given.values)} pairs; at most {_MAX_PAIRS} are kept", "metadata"
        )
    found: dict[str, str] = {}
    for name in given.values:
        if len(name) > _MAX_NAME:
            problem = f"metadata has a name of {len(name)} characters; at most {_MAX_NAME} are kept"
            raise bad_request(problem, "metadata")
        text = found[name] = given.text(name)
        if len(text) > _MAX_VALUE:
            place = given.place(name)
            problem = f"{place} has {len(text)} characters; at most {_MAX_VALUE} are kept"
            raise bad_request(problem, place)
    return found


class _Response:
    """The response object, as it begins and as it ends."""

    def __init__(self, id: str, model: str, body: Fields) -> None:
        self.message_id = f"msg_{id}"
        self._base: Object = {
            "id": f"resp_{id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.raw("instructions"),
            "max_output_tokens": body.whole("max_output_tokens"),
            "metadata": _metadata(body),
            "model": model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if (given := body.number("temperature")) is None else given,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if (given := body.number("top_p")) is None else given,
            "truncation": "disabled",
            "usage": None,
        }

    def begun(self) -> Object:
        """The response before its first token."""
        return self._base

    def ended(self, text: str, done: Done) -> Object:
        """The whole response."""
        long = done.finish_reason in ENDED_BY_LENGTH
        status = "incomplete" if long else "completed"
        return {
            **self._base,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if long else None,
            "output": [self.item(text, status)],
            "usage": _usage_of(done.usage),
        }

    def failed(self, error: Mapping[str, Any]) -> Object:
        """The response of an error."""
        inner = error["error"]
        code = inner.get("code") or "server_error"
        problem = {"code": code, "message": inner["message"]}
        return {**self._base, "status": "failed", "error": problem}

    def item(self, text: str | None, status: str) -> Object:
        """The message; text: None for one without contents yet."""
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [part_of(text)],
        }


def part_of(text: str) -> Object:
    """A content part."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage_of(usage: Usage) -> Object:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class _Stream:
    """Events of a response with one message."""

    content_type = EVENTS

    def __init__(self, response: _Response) -> None:
        self._response = response
        self._numbers = itertools.count()
        self._texts: list[str] = []

    def begin(self) -> bytes:
        begun = self._response.begun()
        return (
            self._event("response.created", response=begun)
            + self._event("response.in_progress", response=begun)
            + self._event(
                "response.output_item.added",
                output_index=0,
                item=self._response.item(None, "in_progress"),
            )
            + self._of_part("response.content_part.added", part=part_of(""))
        )

    def heartbeat(self) -> bytes:
        # Without the instructions, which may be megabytes.
        begun = {**self._response.begun(), "instructions": None}
        return self._event("response.in_progress", response=begun)

    def delta(self, index: int, delta: Delta) -> bytes:
        if not delta.text:
            return b""
        self._texts.append(delta.text)
        return self._of_part("response.output_text.delta", delta=delta.text, logprobs=[])

    def done(self, index: int, done: Done) -> bytes:
        text = "".join(self._texts)
        ended = self._response.ended(text, done)
        return (
            self._of_part("response.output_text.done", text=text, logprobs=[])
            + self._of_part("response.content_part.done", part=part_of(text))
            + self._event("response.output_item.done", output_index=0, item=ended["output"][0])
            + self._event(f"response.{ended['status']}", response=ended)
        )

    def end(self) -> bytes:
        return b""

    def failed(self, error: Mapping[str, Any]) -> bytes:
        return self._event("response.failed", response=self._response.failed(error))

    def _of_part(self, kind: str, **fields: object) -> bytes:
        where = {"item_id": self._response.message_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **where, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        number = next(self._numbers)
        return streams.event({"type": kind, "sequence_number": number, **fields}, kind)
