"""The endpoints of llama.cpp's server that its clients use beside OpenAI's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hearth.common import system
from hearth.root.api.answer import Answer
from hearth.root.api.frontend import Frontend
from hearth.root.api.http import embeddings, streams
from hearth.root.api.http.call import EVENTS, Call
from hearth.root.api.http.conversations import in_turns, message_of
from hearth.root.api.http.errors import HttpError, bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.logprobs import LlamaLogprobs
from hearth.root.api.http.openai import completion_prompts
from hearth.root.api.http.requests import (
    ENDED_BY_LENGTH,
    MAX_CHOICES,
    Services,
    Wanted,
    choose,
    running,
    stops,
)
from hearth.root.api.http.sampling import sampling
from hearth.root.api.http.timings import Timings, timings_of
from hearth.root.api.http.tools import opened, tools_of
from hearth.root.api.infill import Infill, no_gaps
from hearth.root.api.prompt import Input
from hearth.root.engine.mailbox import Delta, Done, TokenScore
from hearth.root.engine.params import MAX_TOP_LOGPROBS
from hearth.root.scheduling.batch import FinishReason
from hearth.v1 import root_pb2

Object = dict[str, Any]

METRICS = "text/plain; version=0.0.4; charset=utf-8"


async def health(call: Call, services: Services) -> None:
    """GET /health: 200 while the cluster is ready."""
    # With several models a request may wait for its model to be loaded.
    ready = services.frontend.cluster().state == root_pb2.CLUSTER_STATE_SERVING
    if ready or services.models is not None:
        await call.reply({"status": "ok"})
        return
    problem = {"message": "Loading model", "type": "unavailable_error", "code": 503}
    await call.reply({"error": problem}, 503)


async def props(call: Call, services: Services) -> None:
    """GET /props."""
    services = services.current
    facts = services.frontend.model()
    await call.reply(
        {
            "default_generation_settings": {"n_ctx": facts.context_size},
            "total_slots": services.frontend.sequences,
            "model_alias": facts.name,
            "model_path": facts.name,
            "chat_template": services.frontend.chat_template,
            "modalities": {"vision": False, "audio": False},
            "build_info": f"hearth {system.version()}",
        }
    )


async def slots(call: Call, services: Services) -> None:
    """GET /slots: one for each sequence of full context."""
    services = services.current
    size = services.frontend.model().context_size
    busy = services.frontend.open_answers
    await call.reply(
        [
            {"id": number, "n_ctx": size, "is_processing": number < busy}
            for number in range(services.frontend.sequences)
        ]
    )


async def tokenize(call: Call, services: Services) -> None:
    """POST /tokenize."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    ids = await services.frontend.tokenize(body.text("content"), body.flag("add_special"))
    if not body.flag("with_pieces"):
        await call.reply({"tokens": ids})
        return
    pieces = [{"id": id, "piece": _piece(services.frontend.token_bytes(id))} for id in ids]
    await call.reply({"tokens": pieces})


async def detokenize(call: Call, services: Services) -> None:
    """POST /detokenize."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    ids = body.items("tokens")
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise bad_request("tokens must be a list of token ids", "tokens")
    await call.reply({"content": await services.frontend.detokenize(ids)})


async def apply_template(call: Call, services: Services) -> None:
    """POST /apply-template."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    messages = await in_turns(message_of(each) for each in body.objects("messages"))
    conversation = replace(opened(body), messages=messages, tools=tools_of(body).given)
    await call.reply({"prompt": await services.frontend.render(conversation)})


async def completion(call: Call, services: Services) -> None:
    """POST /completion."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    await _complete(call, services, body, completion_prompts(body))


async def infill(call: Call, services: Services) -> None:
    """POST /infill: fills the gap between `input_prefix` and `input_suffix`."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    if not await services.frontend.fills_gaps():
        raise HttpError(501, no_gaps().message, "not_supported_error")
    files = tuple(
        (each.text("filename", "tmp"), each.text("text")) for each in body.objects("input_extra")
    )
    before, after = body.text("input_prefix"), body.text("input_suffix")
    gap = Infill(before, after, body.text("prompt"), files)
    await _complete(call, services, body, [gap])


async def metrics(call: Call, services: Services) -> None:
    """GET /metrics: the same as the root's own port for Prometheus (--metrics)."""
    data = await asyncio.to_thread(services.metrics)
    await call.reply_bytes(data, METRICS)


async def _complete(call: Call, services: Services, body: Fields, prompts: Sequence[Input]) -> None:
    limit = body.whole("n_predict", "max_tokens")
    probabilities = body.count("n_probs", 0, MAX_TOP_LOGPROBS, 0)
    if body.flag("post_sampling_probs") and probabilities:
        raise bad_request(
            "post_sampling_probs is true; this root has the probabilities before sampling only",
            "post_sampling_probs",
        )
    wanted = Wanted(
        await sampling(services, body, as_llama=True),
        limit if limit is not None and limit >= 0 else None,
        stops(body),
        choices=body.count("n_cmpl" if body.has("n_cmpl") else "n", 1, MAX_CHOICES, 1),
        top_logprobs=probabilities or None,
        prefix_cache=body.flag("cache_prompt", True),
        ignore_eos=body.flag("ignore_eos"),
    )
    async with running(call, services, prompts, wanted) as answers:
        timed = answers if body.flag("timings_per_token") else ()
        shape = _Stream(services.frontend, LlamaLogprobs(services.frontend), timed)
        if body.flag("stream"):
            progress = shape.progress if body.flag("return_progress") else None
            await streams.send(call, answers, shape, progress)
            return
        found = await streams.collected(answers)
    made = [
        shape.last(index, answer.text, answer.token_ids, done, answer.scores)
        for index, (answer, done) in enumerate(found)
    ]
    await call.reply(made[0] if len(made) == 1 else made)


ROUTES = {
    "/health": ("GET", health),
    "/v1/health": ("GET", health),
    "/props": ("GET", props),
    "/slots": ("GET", slots),
    "/tokenize": ("POST", tokenize),
    "/detokenize": ("POST", detokenize),
    "/apply-template": ("POST", apply_template),
    "/completion": ("POST", completion),
    "/embedding": ("POST", embeddings.llama_server),
    "/infill": ("POST", infill),
    "/metrics": ("GET", metrics),
}


def _piece(data: bytes) -> str | list[int]:
    """A token's text; its bytes where they are not UTF-8 by themselves."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


class _Stream:
    """Events of one completion, or of several."""

    content_type = EVENTS

    def __init__(
        self, frontend: Frontend, logprobs: LlamaLogprobs, timed: Sequence[Answer] = ()
    ) -> None:
        """timed: the answers whose parts have their times."""
        self._model = frontend.model().name
        self._logprobs = logprobs
        self._timings = [Timings(answer) for answer in timed]

    def begin(self) -> bytes:
        return self.heartbeat()

    def heartbeat(self) -> bytes:
        return streams.event(self._part(0, "", ()))

    def delta(self, index: int, delta: Delta) -> bytes:
        part = self._part(index, delta.text, delta.token_ids)
        if self._timings and delta.token_ids:
            part["timings"] = self._timings[index](len(delta.token_ids))
        return streams.event(part | self._logprobs(delta.scores))

    def done(self, index: int, done: Done) -> bytes:
        return streams.event(self.last(index, "", [], done))

    def end(self) -> bytes:
        return b""

    def failed(self, error: Mapping[str, Any]) -> bytes:
        return streams.event(error)

    def progress(self, progress: Object) -> bytes:
        """A part with the progress of the prompt."""
        return streams.event({**self._part(0, "", ()), "prompt_progress": progress})

    def _part(self, index: int, text: str, ids: tuple[int, ...]) -> Object:
        return {"index": index, "content": text, "tokens": ids, "stop": False, "id_slot": 0}

    def last(
        self,
        index: int,
        text: str,
        ids: list[int],
        done: Done,
        scores: Sequence[TokenScore] = (),
    ) -> Object:
        """The end of a completion."""
        kind = "eos"
        if done.finish_reason in ENDED_BY_LENGTH:
            kind = "limit"
        elif done.finish_reason is FinishReason.STOP:
            kind = "word"
        return {
            "index": index,
            "content": text,
            "tokens": ids,
            "id_slot": 0,
            "stop": True,
            "model": self._model,
            "stop_type": kind,
            "stopping_word": done.stop or "",
            "truncated": False,
            "tokens_predicted": done.usage.completion_tokens,
            "tokens_evaluated": done.usage.prompt_tokens,
            "tokens_cached": done.usage.cached_tokens,
            "timings": timings_of(done.usage),
            **self._logprobs(scores),
        }
