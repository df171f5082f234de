"""OpenAI's chat completions, completions and models."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hearth.root.api.http import streams
from hearth.root.api.http.call import Call
from hearth.root.api.http.conversations import in_turns, message_of
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.logprobs import (
    ChatLogprobs,
    CompletionLogprobs,
    wanted_of_chat,
    wanted_of_completion,
)
from hearth.root.api.http.openai_objects import (
    ChatStream,
    Chunks,
    CompletionStream,
    Head,
    finish_of,
    message_of_answer,
    usage_of,
)
from hearth.root.api.http.progress import Shown
from hearth.root.api.http.prompts import prompts_of
from hearth.root.api.http.requests import (
    MAX_CHOICES,
    Services,
    Wanted,
    choose,
    max_tokens,
    running,
    stops,
)
from hearth.root.api.http.sampling import sampling
from hearth.root.api.http.timings import timings_of
from hearth.root.api.http.tools import opened, tools_of
from hearth.root.api.infill import Infill
from hearth.root.api.prompt import Input, Pieces, Prompt, TokenIds

Object = dict[str, Any]

# The default of OpenAI's completions; of its chat there is none.
_COMPLETION_TOKENS = 16


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
    head = Head(f"chatcmpl-{call.id}", int(time.time()), model)
    old = _is_old(body)
    async with running(call, services, [conversation], wanted) as answers:
        if body.flag("stream"):
            usage = _include_usage(body)
            prompt = sum(answer.prompt_tokens for answer in answers[:1])
            timed = answers if body.flag("timings_per_token") else ()
            shape = ChatStream(head, logprobs, len(answers), prompt, usage, timed, old)
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
    echoes = await _echoes(body, services, prompts, wanted.choices)
    if body.flag("echo") and wanted.top_logprobs is not None:
        # The first token of each prompt has no log probability, so it is not among the scores.
        known = [await services.frontend.prompt_ids(prompt) for prompt in prompts]
        prompts = [TokenIds(ids) for ids in known]
        wanted = replace(wanted, prompt_logprobs=True)
        logprobs = [
            CompletionLogprobs(services.frontend, 0, ids[0] if ids else None)
            for ids in known
            for _ in range(wanted.choices)
        ]
    else:
        logprobs = [CompletionLogprobs(services.frontend, len(echo)) for echo in echoes]
    head = Head(f"cmpl-{call.id}", int(time.time()), model)
    async with running(call, services, prompts, wanted) as answers:
        counts = [answer.prompt_tokens for answer in answers[:: wanted.choices]]
        if body.flag("stream"):
            usage = _include_usage(body)
            timed = answers if body.flag("timings_per_token") else ()
            shape = CompletionStream(head, logprobs, echoes, sum(counts), usage, timed)
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


def _progress(body: Fields, shape: Chunks) -> Shown | None:
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
