"""OpenAI's chat completions, completions and models."""

from __future__ import annotations

import datetime
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hearth.common import system
from hearth.root.api.answer import Answer
from hearth.root.api.http import streams
from hearth.root.api.http.call import EVENTS, Call
from hearth.root.api.http.conversations import in_turns, message_of
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    wanted_of_chat,
    wanted_of_completion,
)
from hearth.root.api.http.progress import Shown
from hearth.root.api.http.prompts import prompts_of
from hearth.root.api.http.requests import (
    ENDED_BY_LENGTH,
    MAX_CHOICES,
    Services,
    Wanted,
    choose,
    max_tokens,
    running,
    stops,
)
from hearth.root.api.http.sampling import sampling
from hearth.root.api.http.timings import Timings, timings_of
from hearth.root.api.http.tools import new_call_id, opened, tools_of
from hearth.root.api.infill import Infill
from hearth.root.api.prompt import Input, Pieces, Prompt, TokenIds
from hearth.root.api.spoken import Ended, Part
from hearth.root.engine.mailbox import Delta, Done, Usage

if TYPE_CHECKING:
    from hearth.root.api.tools.events import ToolCall

Object = dict[str, Any]

# The default of OpenAI's completions; of its chat there is none.
_COMPLETION_TOKENS = 16
_DONE = b"data: [DONE]\n\n"
# A text, as OpenAI's document has it: what computes the answers.
_FINGERPRINT = f"hearth-{system.version()}"


async def chat(call: Call, services: Services) -> None:
    """POST /v1/chat/completions."""
    body = await call.json()
    services, model = await choose(services, body.text("model"))
    tools = tools_of(body)
    messages = await in_turns(message_of(each) for each in body.objects("messages"))
    if not messages:
        raise bad_request("messages is empty; give at least one message", "messages")
    limit = max_tokens(body, "max_completion_tokens", "max_tokens")
    wanted = replace(await _wanted(services, body, limit, wanted_of_chat(body)), tools=tools)
    conversation = replace(opened(body), messages=messages, tools=tools.given)
    logprobs = ChatLogprobs(services.frontend)
    head = _Head(f"chatcmpl-{call.id}", int(time.time()), model)
    old = _is_old(body)
    async with running(call, services, [conversation], wanted) as answers:
        if body.flag("stream"):
            usage = _include_usage(body)
            prompt = sum(answer.prompt_tokens for answer in answers[:1])
            timed = answers if body.flag("timings_per_token") else ()
            shape = _ChatStream(head, logprobs, len(answers), prompt, usage, timed, old)
            await streams.send(call, answers, shape, _progress(body, shape))
            return
        found = await streams.collected(answers)
    choices = [
        {
            "index": index,
            "message": message_of_answer(answer, old),
            "logprobs": logprobs(answer.scores),
            "finish_reason": finish_of(done, old),
        }
        for index, (answer, done) in enumerate(found)
    ]
    usages = usage_of([found[0][1].usage.prompt_tokens], [done.usage for _, done in found])
    more = {"choices": choices, "usage": usages, "timings": timings_of(found[0][1].usage)}
    await call.reply(head.object("chat.completion") | more)


async def count_chat(call: Call, services: Services) -> None:
    """POST /v1/chat/completions/input_tokens, as llama.cpp's server has it."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    messages = await in_turns(message_of(each) for each in body.objects("messages"))
    conversation = replace(opened(body), messages=messages, tools=tools_of(body).given)
    ids = await services.frontend.prompt_ids(conversation)
    await call.reply({"object": "response.input_tokens", "input_tokens": len(ids)})


async def completions(call: Call, services: Services) -> None:
    """POST /v1/completions."""
    body = await call.json()
    services, model = await choose(services, body.text("model"))
    prompts = completion_prompts(body)
    if suffix := body.text("suffix"):
        prompts = [_around(prompt, suffix) for prompt in prompts]
    best_of = body.whole("best_of")
    if best_of and best_of != (body.whole("n") or 1):
        raise bad_request(f"best_of is {best_of}; it must be equal to n", "best_of")
    limit = max_tokens(body, "max_tokens") if body.has("max_tokens") else _COMPLETION_TOKENS
    wanted = await _wanted(services, body, limit, wanted_of_completion(body))
    if body.flag("echo") and wanted.top_logprobs is not None:
        raise bad_request(
            "echo and logprobs are given, and this root has log probabilities of the answer only; "
            "ask without echo",
            "logprobs",
        )
    echoes = await _echoes(body, services, prompts, wanted.choices)
    logprobs = [CompletionLogprobs(services.frontend, len(echo)) for echo in echoes]
    head = _Head(f"cmpl-{call.id}", int(time.time()), model)
    async with running(call, services, prompts, wanted) as answers:
        counts = [answer.prompt_tokens for answer in answers[:: wanted.choices]]
        if body.flag("stream"):
            usage = _include_usage(body)
            timed = answers if body.flag("timings_per_token") else ()
            shape = _CompletionStream(head, logprobs, echoes, sum(counts), usage, timed)
            await streams.send(call, answers, shape, _progress(body, shape))
            return
        found = await streams.collected(answers)
    choices = [
        {
            "index": index,
            "text": echo + answer.text,
            "logprobs": logprobs[index](answer.scores),
            "finish_reason": finish_of(done),
        }
        for index, (echo, (answer, done)) in enumerate(zip(echoes, found, strict=True))
    ]
    usages = usage_of(counts, [done.usage for _, done in found])
    more = {"choices": choices, "usage": usages, "timings": timings_of(found[0][1].usage)}
    await call.reply(head.object("text_completion") | more)


async def models(call: Call, services: Services) -> None:
    """GET /v1/models: OpenAI's list, with the fields of Anthropic's beside."""
    found = [_model(each) for each in services.listed]
    pages = {"has_more": False, "first_id": found[0]["id"], "last_id": found[-1]["id"]}
    await call.reply({"object": "list", "data": found, **pages})


async def model(call: Call, services: Services) -> None:
    """GET /v1/models/{id}."""
    services, _ = await choose(services, call.scope["path_params"]["id"])
    await call.reply(_model(services))


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


def completion_prompts(body: Fields) -> list[Input]:
    """The prompts of a completion; without any, one of no text. Raises HttpError."""
    return prompts_of(body, "prompt", MAX_CHOICES) if body.has("prompt") else [Prompt("")]


def _around(prompt: Input, suffix: str) -> Input:
    """The gap between a prompt and a suffix. Raises HttpError."""
    if not isinstance(prompt, Prompt):
        raise bad_request("suffix is given; then prompt must be a text", "suffix")
    return Infill(prompt.text, suffix)


async def _wanted(
    services: Services, body: Fields, limit: int | None, top_logprobs: int | None
) -> Wanted:
    choices = body.count("n", 1, MAX_CHOICES, 1)
    return Wanted(await sampling(services, body), limit, stops(body), choices, top_logprobs)


def _is_old(body: Fields) -> bool:
    """True for a request with `functions`, which came before `tools`."""
    return body.has("functions") and not body.has("tools")


def _include_usage(body: Fields) -> bool:
    options = body.child("stream_options")
    return options is not None and options.flag("include_usage")


def _progress(body: Fields, shape: _Stream) -> Shown | None:
    return shape.progress if body.flag("return_progress") else None


async def _echoes(
    body: Fields, services: Services, prompts: Sequence[Input], choices: int
) -> list[str]:
    """For each answer, the text before it: that of its prompt with `echo`."""
    texts: list[str] = []
    for prompt in prompts:
        text = ""
        if body.flag("echo"):
            match prompt:
                case Prompt(given) | Infill(given):
                    text = given
                case TokenIds(ids):
                    text = await services.frontend.detokenize(ids)
                case Pieces(pieces):
                    # Ids in a row together: a character may lie in several tokens.
                    for is_text, run in itertools.groupby(
                        pieces, lambda each: isinstance(each, str)
                    ):
                        if is_text:
                            text += "".join(map(str, run))
                        else:
                            text += await services.frontend.detokenize([int(id) for id in run])
        texts += [text] * choices
    return texts


def _model(services: Services) -> Object:
    facts = services.frontend.model()
    return {
        "id": facts.name,
        "object": "model",
        "created": int(services.started),
        "owned_by": "hearth",
        "type": "model",
        "display_name": facts.name,
        "created_at": datetime.datetime.fromtimestamp(services.started, datetime.UTC).isoformat(),
        "context_length": facts.context_size,
        "max_model_len": facts.context_size,
        "meta": {
            "n_ctx": facts.context_size,
            "n_vocab": facts.vocab_size,
            "n_params": facts.parameters,
            "n_embd": facts.hidden_size,
            "size": services.weight_bytes,
        },
    }


class _Head:
    """The fields that every object of one answer has."""

    def __init__(self, id: str, created: int, model: str) -> None:
        self._fields = {"id": id, "created": created, "model": model}

    def object(self, kind: str) -> Object:
        """The beginning of an object."""
        return {**self._fields, "object": kind, "system_fingerprint": _FINGERPRINT}


class _Stream(ABC):
    """Chunks of choices, then the usage if it is asked for, then [DONE]."""

    content_type = EVENTS
    _kind = ""

    def __init__(
        self,
        head: _Head,
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


class _ChatStream(_Stream):
    _kind = "chat.completion.chunk"

    def __init__(
        self,
        head: _Head,
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


class _CompletionStream(_Stream):
    _kind = "text_completion"

    def __init__(
        self,
        head: _Head,
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
