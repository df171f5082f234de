"""Clients of HTTP streams, many at once: some cancel, some are slow, and all check their text."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

BUSY = 429
# No event comes for longer: heartbeats come every 10 s.
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class Face:
    """A path for text completions. body: by prompt and length.

    read: the new text of an event, and whether it is the last.
    """

    path: str
    body: Callable[[str, int], Mapping[str, Any]]
    read: Callable[[Mapping[str, Any]], tuple[str, bool]]


def _of_openai(event: Mapping[str, Any]) -> tuple[str, bool]:
    (choice,) = event["choices"]
    return choice["text"], choice["finish_reason"] is not None


FACES = (
    Face(
        "/v1/completions",
        lambda prompt, length: {
            "prompt": prompt,
            "max_tokens": length,
            "temperature": 0,
            "stream": True,
        },
        _of_openai,
    ),
    Face(
        "/api/generate",
        lambda prompt, length: {
            "model": "any",
            "prompt": prompt,
            "raw": True,
            "options": {"num_predict": length, "temperature": 0},
        },
        lambda event: (event["response"], event["done"]),
    ),
    Face(
        "/completion",
        lambda prompt, length: {
            "prompt": prompt,
            "n_predict": length,
            "temperature": 0,
            "stream": True,
        },
        lambda event: (event["content"], event["stop"]),
    ),
)


@dataclass
class Tally:
    """The outcome of the clients so far. wrong: in words."""

    done: int = 0
    cancelled: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


class StreamError(Exception):
    """A stream that ended with an error, or without an end."""


async def read(
    client: httpx.AsyncClient,
    face: Face,
    prompt: str,
    length: int,
    *,
    pause: float = 0.0,
    cancel_at: int | None = None,
) -> str | None:
    """The text of a stream; None where it was cancelled behind `cancel_at` characters.

    pause: seconds before each event is read. Raises StreamError, httpx.HTTPStatusError.
    """
    text = ""
    ended = False
    async with client.stream("POST", face.path, json=face.body(prompt, length)) as response:
        if response.status_code != httpx.codes.OK:
            await response.aread()
            response.raise_for_status()
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise StreamError(f"{face.path}: {data[:300]}")
            more, last = face.read(event)
            text += more
            ended = ended or last
            if not ended and cancel_at is not None and len(text) > cancel_at:
                return None
            if pause:
                await asyncio.sleep(pause)
    if ended:
        return text
    raise StreamError(f"{face.path}: the stream has no end: {text[-100:]!r}")


async def run_clients(
    url: str,
    count: int,
    wanted: Mapping[tuple[str, int], str],
    more: Callable[[], bool],
    pause: float,
) -> Tally:
    """`count` clients, one request after the other each, while `more()`.

    wanted: the text by prompt and length. pause: of slow readers, in seconds for each event.
    """
    tally = Tally()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=MOST_SECONDS, limits=limits) as client:
        every = (_one(client, number, wanted, more, pause, tally) for number in range(count))
        await asyncio.gather(*every)
    return tally


async def _one(
    client: httpx.AsyncClient,
    number: int,
    wanted: Mapping[tuple[str, int], str],
    more: Callable[[], bool],
    pause: float,
    tally: Tally,
) -> None:
    draw = random.Random(number)
    requests = list(wanted)
    while more():
        face, (prompt, length) = draw.choice(FACES), draw.choice(requests)
        slow = pause if draw.random() < 0.2 else 0.0
        cancel_at = draw.randrange(length) if draw.random() < 0.25 else None
        try:
            text = await read(client, face, prompt, length, pause=slow, cancel_at=cancel_at)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != BUSY:
                tally.wrong.append(
                    f"{face.path}: {error.response.status_code} {error.response.text[:300]}"
                )
            tally.refused += 1
            await asyncio.sleep(0.1)
        except (StreamError, httpx.HTTPError) as error:
            tally.wrong.append(f"{type(error).__name__}: {error}")
        else:
            if text is None:
                tally.cancelled += 1
                continue
            tally.done += 1
            if text != wanted[prompt, length]:
                tally.wrong.append(
                    f"{face.path}: another text after {prompt[:20]!r}, {length} tokens"
                )
