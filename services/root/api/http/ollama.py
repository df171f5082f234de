"""Ollama's API, for the clients that know no other."""

from __future__ import annotations

import datetime
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hearth.root.api.frontend import ModelFacts
from hearth.root.api.http import embeddings, streams
from hearth.root.api.http.call import LINES, Call
from hearth.root.api.http.conversations import Message, in_turns, message_of
from hearth.root.api.http.errors import HttpError, bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.formats import constraint_of_ollama
from hearth.root.api.http.logprobs import ChatLogprobs, wanted_of_ollama
from hearth.root.api.http.requests import (
    ENDED_BY_LENGTH,
    Services,
    Wanted,
    choose,
    keep,
    keep_seconds,
    running,
    stops,
)
from hearth.root.api.http.sampling import sampling
from hearth.root.api.http.tools import new_call_id, tools_of
from hearth.root.api.infill import Infill
from hearth.root.api.json_text import loads
from hearth.root.api.prompt import Conversation, Input, Prompt, TokenIds
from hearth.root.api.spoken import Ended, Part
from hearth.root.api.tools.choice import thinking

if TYPE_CHECKING:
    from hearth.root.api.tools.events import ToolCall
    from hearth.root.engine.mailbox import TokenScore

Object = dict[str, Any]

# The release of Ollama whose API this is: clients refuse older ones.
VERSION = "0.13.4"
_SECOND = 1_000_000_000
# A model that runs stays: as far ahead as clients' dates reach.
_FOR_EVER = "2100-01-01T00:00:00Z"
_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


async def chat(call: Call, services: Services) -> None:
    """POST /api/chat."""
    body = await call.json()
    services, model = await _named(body, services)
    tools = tools_of(body)
    variables = await _thinking(services, body)
    messages = await in_turns(map(_message_of, body.objects("messages")))
    if not messages:
        empty = {"message": {"role": "assistant", "content": ""}}
        await _loaded(call, services, body, empty, model)
        return
    conversation = Conversation(messages, tools.given, variables)
    wanted = replace(await _wanted(services, body), tools=tools)
    part = _Part(model, ChatLogprobs(services.frontend), chat=True)
    await _generate(call, services, body, conversation, part, wanted)


async def generate(call: Call, services: Services) -> None:
    """POST /api/generate."""
    body = await call.json()
    services, model = await _named(body, services)
    variables = await _thinking(services, body)
    if body.items("images"):
        raise bad_request("images are given, and this model reads text only")
    text = body.text("prompt")
    if not text:
        await _loaded(call, services, body, {"response": ""}, model)
        return
    prompt: Input = Prompt(text)
    if suffix := body.text("suffix"):
        prompt = Infill(text, suffix)
    elif not body.flag("raw") and services.frontend.model().has_chat_template:
        messages: list[Message] = [{"role": "user", "content": text}]
        if system := body.text("system"):
            messages.insert(0, {"role": "system", "content": system})
        prompt = Conversation(messages, variables=variables)
    wanted = await _wanted(services, body)
    part = _Part(model, ChatLogprobs(services.frontend), chat=False)
    await _generate(call, services, body, prompt, part, wanted)


async def tags(call: Call, services: Services) -> None:
    """GET /api/tags."""
    models = [{**_listed(each), "capabilities": await _abilities(each)} for each in services.listed]
    await call.reply({"models": models})


async def running_models(call: Call, services: Services) -> None:
    """GET /api/ps."""
    models = services.models
    expires = _FOR_EVER
    if models is not None:
        left = models.shelf.expires(models.shelf.loaded or "")
        if left is None:
            await call.reply({"models": []})
            return
        if not math.isinf(left):
            expires = _time(time.time() + left)
        services = services.current
    size = services.weight_bytes
    facts = services.frontend.model()
    more = {"expires_at": expires, "size_vram": size, "context_length": facts.context_size}
    await call.reply({"models": [_listed(services) | more] if size else []})


async def show(call: Call, services: Services) -> None:
    """POST /api/show."""
    body = await call.json()
    services, _ = await _named(body, services)
    facts = services.frontend.model()
    gaps = await services.frontend.fills_gaps()
    kind = facts.architecture
    info = {
        "general.architecture": kind,
        "general.basename": facts.name,
        "general.parameter_count": facts.parameters,
        f"{kind}.context_length": facts.context_size,
        f"{kind}.embedding_length": facts.hidden_size,
        f"{kind}.block_count": facts.layers,
        f"{kind}.attention.head_count": facts.heads,
        f"{kind}.attention.head_count_kv": facts.kv_heads,
    }
    await call.reply(
        {
            "license": "",
            "modelfile": "",
            "parameters": f"num_ctx {facts.context_size}",
            "template": services.frontend.chat_template,
            "details": _details(facts),
            "model_info": info,
            "capabilities": [*await _abilities(services), *(["insert"] if gaps else [])],
            "modified_at": _time(services.started),
        }
    )


async def version(call: Call, services: Services) -> None:
    """GET /api/version."""
    await call.reply({"version": VERSION})


async def pull(call: Call, services: Services) -> None:
    """POST /api/pull: succeeds for a model that is here."""
    body = await call.json()
    services, _ = await _named(body, services)
    if not body.flag("stream", True):
        await call.reply({"status": "success"})
        return
    await call.reply_bytes(streams.line({"status": "success"}), LINES)


async def not_here(call: Call, services: Services) -> None:
    """The paths that change models."""
    raise HttpError(
        501, f"{call.path[:100]} is not available: a root's models are chosen when it starts"
    )


ROUTES = {
    "/api/chat": ("POST", chat),
    "/api/generate": ("POST", generate),
    "/api/tags": ("GET", tags),
    "/api/ps": ("GET", running_models),
    "/api/show": ("POST", show),
    "/api/version": ("GET", version),
    "/api/pull": ("POST", pull),
    "/api/embed": ("POST", embeddings.ollama),
    "/api/embeddings": ("POST", embeddings.ollama_single),
    "/api/push": ("POST", not_here),
    "/api/create": ("POST", not_here),
    "/api/copy": ("POST", not_here),
    "/api/delete": ("DELETE", not_here),
    "/api/blobs/{digest:path}": ("POST", not_here),
}


async def _named(body: Fields, services: Services) -> tuple[Services, str]:
    """The services of the model that a request names, and the name as it has it. HttpError."""
    given = body.text("model") or body.text("name")
    if not given:
        raise bad_request("model is missing; name the model")
    services, _ = await choose(services, given)
    keep(services, body)
    return services, given


def _message_of(fields: Fields) -> Message:
    if fields.items("images"):
        raise bad_request(f"{fields.place('images')} is given, and this model reads text only")
    message = message_of(fields)
    if message["role"] == "assistant" and (thought := fields.text("thinking")):
        message["reasoning_content"] = thought
    if message["role"] == "tool" and (name := fields.text("tool_name")):
        message["name"] = name
    return message


async def _thinking(services: Services, body: Fields) -> Mapping[str, Any]:
    """Names for the template by `think`: true, false or an effort. Raises HttpError."""
    wish = body.raw("think")
    if wish is None:
        return {}
    if not isinstance(wish, bool | str):
        raise body.wrong("think", wish, 'true, false, "low", "medium" or "high"')
    if wish and not await services.frontend.reasons():
        model = body.text("model")[:100]
        raise bad_request(f"{model!r} does not support thinking")
    return thinking(wish)


async def _abilities(services: Services) -> list[str]:
    facts = services.frontend.model()
    found = _capabilities(facts)
    if facts.has_chat_template:
        found += ["tools", "thinking"] if await services.frontend.reasons() else ["tools"]
    return found


async def _wanted(services: Services, body: Fields) -> Wanted:
    """Sampling of `options`; those that choose how a model is loaded have no effect."""
    options = body.child("options") or Fields({})
    limit = options.whole("num_predict")
    chosen = await sampling(services, options, as_llama=True)
    return Wanted(
        replace(chosen, constraint=constraint_of_ollama(body)),
        limit if limit is not None and limit > 0 else None,  # 0, -1 and -2: no limit
        stops(options),
        top_logprobs=wanted_of_ollama(body),
    )


async def _generate(
    call: Call, services: Services, body: Fields, prompt: Input, part: _Part, wanted: Wanted
) -> None:
    async with running(call, services, [prompt], wanted) as answers:
        if body.flag("stream", True):
            await streams.send(call, answers, _Stream(part))
            return
        ((answer, done),) = await streams.collected(answers)
    await call.reply(part.last(answer, done))


async def _loaded(call: Call, services: Services, body: Fields, empty: Object, model: str) -> None:
    """The answer to a request without a prompt, which only loads or unloads a model."""
    unload = keep_seconds(body) == 0
    if services.models is not None and not unload:
        # One token, because it waits for its model as any other request does.
        wanted = Wanted(max_tokens=1)
        async with running(call, services, [TokenIds((0,))], wanted) as answers:
            await streams.collected(answers)
    elif services.models is not None:
        name = services.frontend.model().name
        if services.models.shelf.expires(name) is None:  # it is not there, and later ones stay
            services.models.shelf.keep(name, None)
    answer = {"model": model, "created_at": _time(), **empty, "done": True}
    await call.reply(answer | {"done_reason": "unload" if unload else "load"})


class _Part:
    """One line of an answer: of chat with a message, of generate with a response."""

    def __init__(self, model: str, logprobs: ChatLogprobs, chat: bool) -> None:
        self._model = model
        self._logprobs = logprobs
        self._chat = chat
        self._calls = 0

    def line(self, part: Part) -> Object:
        """New text, reasoning, or a call."""
        calls = [part.call] if part.call is not None else []
        made = self._object(part.text, part.reasoning, calls, part.scores)
        return made | {"done": False}

    def last(self, answer: streams.Collected, done: Ended) -> Object:
        """The end, with what was not sent yet."""
        usage = done.usage
        long = done.finish_reason in ENDED_BY_LENGTH
        seconds = usage.queue_seconds + usage.prefill_seconds + usage.decode_seconds
        made = self._object(answer.text, answer.reasoning, answer.calls, answer.scores)
        return made | {
            "done": True,
            "done_reason": "length" if long else "stop",
            "total_duration": round(seconds * _SECOND),
            "load_duration": round(usage.queue_seconds * _SECOND),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": round(usage.prefill_seconds * _SECOND),
            "eval_count": usage.completion_tokens,
            "eval_duration": round(usage.decode_seconds * _SECOND),
        }

    def _object(
        self, text: str, thought: str, calls: Sequence[ToolCall], scores: Sequence[TokenScore]
    ) -> Object:
        made: Object = {"model": self._model, "created_at": _time()}
        if scores:
            made["logprobs"] = self._logprobs.entries(scores)
        more: Object = {"thinking": thought} if thought else {}
        if not self._chat:
            return made | {"response": text} | more
        if calls:
            more["tool_calls"] = [self._call(call) for call in calls]
        return made | {"message": {"role": "assistant", "content": text, **more}}

    def _call(self, call: ToolCall) -> Object:
        index = self._calls
        self._calls += 1
        function = {"index": index, "name": call.name, "arguments": loads(call.arguments)}
        # Beside the function too: there LiteLLM reads which call of a stream it is.
        return {"id": new_call_id("call_"), "index": index, "function": function}


class _Stream:
    content_type = LINES

    def __init__(self, part: _Part) -> None:
        self._part = part

    def begin(self) -> bytes:
        return self.heartbeat()

    def heartbeat(self) -> bytes:
        return streams.line(self._part.line(Part("", ())))

    def delta(self, index: int, delta: Part) -> bytes:
        if not (delta.text or delta.reasoning or delta.scores or delta.call):
            return b""
        return streams.line(self._part.line(delta))

    def done(self, index: int, done: Ended) -> bytes:
        return streams.line(self._part.last(streams.Collected(), done))

    def end(self) -> bytes:
        return b""

    def failed(self, error: Mapping[str, Any]) -> bytes:
        return streams.line(error)


def _listed(services: Services) -> Object:
    facts = services.frontend.model()
    name = f"{facts.name}:latest"
    return {
        "name": name,
        "model": name,
        "modified_at": _time(services.started),
        "size": services.weight_bytes or facts.parameters,
        "digest": hashlib.sha256(repr(facts).encode()).hexdigest(),
        "details": _details(facts),
        "capabilities": _capabilities(facts),
    }


def _capabilities(facts: ModelFacts) -> list[str]:
    """`embedding` only for models that are made for it: lists of chat models leave those out."""
    return ["completion", "embedding"] if facts.pooling else ["completion"]


def _details(facts: ModelFacts) -> Object:
    return {
        "parent_model": "",
        "format": "hearth",
        "family": facts.architecture,
        "families": [facts.architecture],
        "parameter_size": _counted(facts.parameters),
        "quantization_level": facts.weight_type.upper(),
    }


def _counted(count: int) -> str:
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _time(seconds: float | None = None) -> str:
    """A time in RFC 3339, now by default."""
    if seconds is None:
        when = datetime.datetime.now(datetime.UTC)
    else:
        when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat().replace("+00:00", "Z")
