"""OpenAI's responses, as Codex and newer clients of OpenAI use them. Nothing is stored."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hearth.root.api.http import streams
from hearth.root.api.http.call import EVENTS, Call
from hearth.root.api.http.conversations import Message, call_of, in_turns, message_of, text_of
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.logprobs import ChatLogprobs, wanted_of_responses
from hearth.root.api.http.requests import (
    ENDED_BY_LENGTH,
    Services,
    Wanted,
    choose,
    max_tokens,
    running,
)
from hearth.root.api.http.response_items import Output
from hearth.root.api.http.sampling import sampling
from hearth.root.api.http.timings import Timings, timings_of
from hearth.root.api.http.tools import template_variables, tools_of
from hearth.root.api.prompt import Conversation
from hearth.root.api.spoken import Ended, Part
from hearth.root.api.tools.choice import EFFORTS, Tools, thinking

Object = dict[str, Any]

# Metadata: pairs, characters of a name and of a value.
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512
# Fields that name something which OpenAI's service would have stored.
_STORED = ("previous_response_id", "conversation", "prompt")
_CALLS = ("function_call", "custom_tool_call")
_RESULTS = ("function_call_output", "custom_tool_call_output")


async def create(call: Call, services: Services) -> None:
    """POST /v1/responses."""
    body = await call.json()
    services, model = await choose(services, body.text("model"))
    tools = tools_of(body)
    conversation = await _conversation(body, tools)
    wanted = Wanted(
        await sampling(services, body),
        max_tokens(body, "max_output_tokens"),
        tools=tools,
        top_logprobs=wanted_of_responses(body),
    )
    made = _Response(call.id, model, body)
    output = Output(call.id, ChatLogprobs(services.frontend))
    async with running(call, services, [conversation], wanted) as answers:
        if body.flag("stream"):
            timings = Timings(answers[0]) if body.flag("timings_per_token") else None
            await streams.send(call, answers, _Stream(made, output, timings))
            return
        ((answer, done),) = await streams.collected(answers)
    output.whole(answer)
    await call.reply(made.ended(output, done))


async def count_tokens(call: Call, services: Services) -> None:
    """POST /v1/responses/input_tokens: the tokens that a prompt would have."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    ids = await services.frontend.prompt_ids(await _conversation(body, tools_of(body)))
    await call.reply({"object": "response.input_tokens", "input_tokens": len(ids)})


async def _conversation(body: Fields, tools: Tools) -> Conversation:
    for name in _STORED:
        if body.raw(name):
            raise bad_request(
                f"{name} is given, and this root stores nothing: send the whole conversation as "
                "input",
                name,
            )
    messages = await in_turns(_messages(body))
    if not messages:
        raise bad_request("input is an empty list; give a text or at least one message", "input")
    variables = dict(template_variables(body))
    wish = body.child("reasoning")
    if wish is not None and wish.has("effort"):
        variables = {**thinking(wish.text("effort")), **variables}
    return Conversation(messages, tools.given, variables)


def _messages(body: Fields) -> Iterator[Message]:
    if instructions := text_of(body, "instructions"):
        yield {"role": "system", "content": instructions}
    given = body.values.get("input")
    if given is None or isinstance(given, str):  # OpenAI's own types make it optional
        yield {"role": "user", "content": given or ""}
        return
    thought = ""
    for item in body.objects("input"):
        kind = item.text("type", "message")
        if kind == "message":
            message = message_of(item)
            if thought and message["role"] == "assistant":
                message["reasoning_content"], thought = thought, ""
            yield message
        elif kind in _CALLS:
            arguments = item.raw("arguments", "input")
            if arguments is not None and not isinstance(arguments, str):
                raise item.wrong("arguments", arguments, "a string of JSON")
            made = call_of(item.text("name"), arguments or "{}", item.text("call_id"))
            message = {"role": "assistant", "content": "", "tool_calls": [made]}
            if thought:
                message["reasoning_content"], thought = thought, ""
            yield message
        elif kind in _RESULTS:
            result = text_of(item, "output")
            yield {"role": "tool", "content": result, "tool_call_id": item.text("call_id")}
        elif kind == "reasoning":
            thought += "\n".join(
                each.text("text") for name in ("summary", "content") for each in item.objects(name)
            )
        else:
            place = item.place("type")
            raise bad_request(f"{place} is {kind[:40]!r}, which this root does not read", place)


def _format(body: Fields) -> Any:
    text = body.child("text")
    return (text.raw("format") if text is not None else None) or {"type": "text"}


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
            "parallel_tool_calls": body.values.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": _effort(body), "summary": None},
            "store": False,
            "temperature": 1.0 if (given := body.number("temperature")) is None else given,
            "text": {"format": _format(body)},
            "tool_choice": body.raw("tool_choice") or "auto",
            "tools": [each for each in body.items("tools") if each.get("type") == "function"],
            "top_p": 1.0 if (given := body.number("top_p")) is None else given,
            "truncation": "disabled",
            "usage": None,
        }

    def begun(self) -> Object:
        """The response before its first token."""
        return self._base

    def ended(self, output: Output, done: Ended) -> Object:
        """The whole response."""
        long = done.finish_reason in ENDED_BY_LENGTH
        status = "incomplete" if long else "completed"
        return {
            **self._base,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if long else None,
            "output": output.items,
            "usage": _usage_of(done),
            "timings": timings_of(done.usage),
        }

    def failed(self, error: Mapping[str, Any]) -> Object:
        """The response of an error."""
        inner = error["error"]
        code = inner.get("code") or "server_error"
        problem = {"code": code, "message": inner["message"]}
        return {**self._base, "status": "failed", "error": problem}


def _effort(body: Fields) -> str | None:
    """The effort of the request, where it is one that OpenAI's document has."""
    wish = body.child("reasoning")
    given = wish.text("effort") if wish is not None else ""
    return given if given in EFFORTS else None


def _usage_of(done: Ended) -> Object:
    usage = done.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class _Stream:
    """Events of a response."""

    content_type = EVENTS

    def __init__(self, response: _Response, output: Output, timings: Timings | None = None) -> None:
        """timings: of each part, where they are wanted."""
        self._response = response
        self._output = output
        self._timings = timings
        self._numbers = itertools.count()

    def begin(self) -> bytes:
        begun = self._response.begun()
        return self._event("response.created", {"response": begun}) + self._event(
            "response.in_progress", {"response": begun}
        )

    def heartbeat(self) -> bytes:
        # Without the instructions and tools, which may be megabytes.
        begun = {**self._response.begun(), "instructions": None, "tools": []}
        return self._event("response.in_progress", {"response": begun})

    def delta(self, index: int, delta: Part) -> bytes:
        timings = {} if self._timings is None else self._timings(len(delta.token_ids))
        events = self._output.part(delta)
        if not timings:
            return self._events(events)
        return self._events((kind, {**values, "timings": timings}) for kind, values in events)

    def done(self, index: int, done: Ended) -> bytes:
        closed = self._events(self._output.end(done.finish_reason in ENDED_BY_LENGTH))
        ended = self._response.ended(self._output, done)
        return closed + self._event(f"response.{ended['status']}", {"response": ended})

    def end(self) -> bytes:
        return b""

    def failed(self, error: Mapping[str, Any]) -> bytes:
        return self._event("response.failed", {"response": self._response.failed(error)})

    def _events(self, events: Iterable[tuple[str, Object]]) -> bytes:
        return b"".join(self._event(kind, values) for kind, values in events)

    def _event(self, kind: str, values: Object) -> bytes:
        number = next(self._numbers)
        return streams.event({"type": kind, "sequence_number": number, **values}, kind)
