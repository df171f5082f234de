"""Vectors of texts: OpenAI's embeddings, Ollama's and llama.cpp's."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

from hearth.root.api.embedding import F32, MAX_INPUTS, Vector
from hearth.root.api.http.call import JSON, Call, encode
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.prompts import prompts_of
from hearth.root.api.http.requests import Services, choose, keep
from hearth.root.api.prompt import Input, Prompt

Object = dict[str, Any]

# Numbers in one answer: a JSON text of 160 MiB at most.
MAX_NUMBERS = 1 << 23
_SECOND = 1_000_000_000


async def openai(call: Call, services: Services) -> None:
    """POST /v1/embeddings."""
    body = await call.json()
    services, model = await choose(services, body.text("model"))
    form = body.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise bad_request(
            f"encoding_format is {form[:40]!r}; it must be float or base64", "encoding_format"
        )
    inputs = prompts_of(body, "content" if body.has("content") else "input", MAX_INPUTS)
    made = await _embed(services, body, inputs, "dimensions")
    vectors = [each.normalised() for each in made]
    tokens = sum(each.tokens for each in made)

    def answer() -> Object:
        shape: Callable[[F32], Any] = _base64 if form == "base64" else _numbers
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": shape(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    await _reply(call, answer)


async def ollama(call: Call, services: Services) -> None:
    """POST /api/embed. An input that is too long is cut, unless `truncate` is false."""
    began = time.perf_counter()
    body = await call.json()
    services, model = await _named(body, services)
    given = body.values.get("input")
    inputs = prompts_of(body, "input", MAX_INPUTS) if given != [] else []
    made = await _embed(services, body, inputs, "dimensions", body.flag("truncate", True))
    vectors = [each.normalised() for each in made]

    def answer() -> Object:
        return {
            "model": model,
            "embeddings": [_numbers(vector) for vector in vectors],
            "total_duration": round((time.perf_counter() - began) * _SECOND),
            "load_duration": 0,
            "prompt_eval_count": sum(each.tokens for each in made),
        }

    await _reply(call, answer)


async def ollama_single(call: Call, services: Services) -> None:
    """POST /api/embeddings: one vector, as it is (Ollama normalises those of /api/embed only)."""
    body = await call.json()
    services, _ = await _named(body, services)
    inputs = [Prompt(body.text("prompt"))]
    (made,) = await _embed(services, body, inputs, "", body.flag("truncate", True))
    await call.reply({"embedding": _numbers(made.values)})


async def llama_server(call: Call, services: Services) -> None:
    """POST /embedding. embd_normalize: -1 none, 1 taxicab, 2 Euclidean (the default), p p-norm."""
    body = await call.json()
    order = body.count("embd_normalize", -1, 32, 2)
    if order == 0:
        raise bad_request("embd_normalize is 0; it must be -1, or the order of a norm", "content")
    inputs = prompts_of(body, "content" if body.has("content") else "input", MAX_INPUTS)
    made = await _embed(services, body, inputs, "")
    vectors = [each.normalised(order) for each in made]

    def answer() -> list[Object]:
        return [
            {"index": index, "embedding": [_numbers(vector)]}
            for index, vector in enumerate(vectors)
        ]

    await _reply(call, answer)


async def _embed(
    services: Services,
    body: Fields,
    inputs: Sequence[Input],
    dimensions: str,
    truncate: bool = False,
) -> list[Vector]:
    """The vectors, cut to the number of the field `dimensions`. Raises HttpError, HearthError."""
    frontend = services.frontend
    size = frontend.model().hidden_size
    wanted = body.count(dimensions, 1, size, size) if dimensions else size
    if len(inputs) * wanted > MAX_NUMBERS:
        raise bad_request(
            f"{len(inputs)} texts of {wanted} numbers are {len(inputs) * wanted}, and one answer "
            f"has {MAX_NUMBERS} at most; send fewer texts at once"
        )
    made = await frontend.embed(inputs, truncate=truncate)
    return [each.cut(wanted) for each in made]


async def _named(body: Fields, services: Services) -> tuple[Services, str]:
    given = body.text("model") or body.text("name")
    if not given:
        raise bad_request("model is missing; name the model")
    services, _ = await choose(services, given)
    keep(services, body)
    return services, given


def _numbers(vector: F32) -> list[float]:
    return [float(value) for value in vector]


def _base64(vector: F32) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def _reply(call: Call, answer: Callable[[], object]) -> None:
    """Encodes in a thread: many vectors are megabytes of numbers."""
    data = await asyncio.to_thread(lambda: encode(answer()))
    await call.reply_bytes(data, JSON)
