"""Requests of all faces: the model's name, sampling, lengths, and the answers that run."""

from __future__ import annotations

import math
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from hearth.converter.names import plain
from hearth.root.api.answer import Answer
from hearth.root.api.frontend import Frontend, Generation
from hearth.root.api.http.call import Call
from hearth.root.api.http.errors import bad_request, unknown_model
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.sampling import SEED_MASK
from hearth.root.api.models import Models
from hearth.root.api.prompt import Conversation, Input, TokenIds
from hearth.root.api.tools.choice import Tools, stops_of
from hearth.root.engine.params import Sampling
from hearth.root.scheduling.batch import FinishReason
from hearth.root.status.activity import Activity
from hearth.root.status.history import History

# Answers to one request. More than the root's places are refused there.
MAX_CHOICES = 64

ENDED_BY_LENGTH = (FinishReason.LENGTH, FinishReason.CONTEXT)


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that the faces serve. any_model: every name of a model is the running one's.

    history: of the cluster. activity: the root's work now. models: several, of which a request
    chooses one (`choose`).
    """

    frontend: Frontend
    any_model: bool = False
    started: float = field(default_factory=time.time)
    history: History = field(default_factory=History)
    activity: Callable[[], Activity] = Activity
    models: Models | None = None
    # The root's measurements, as Prometheus reads them.
    metrics: Callable[[], bytes] = bytes

    @property
    def listed(self) -> Sequence[Services]:
        """Each model's own, for its facts."""
        if self.models is None:
            return [self]
        return [replace(self, frontend=frontend) for frontend in self.models.frontends]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights, all nodes together; 0 while one model has no plan."""
        nodes = self.frontend.cluster().nodes
        if not nodes and self.models is not None:
            return self.models.shelf.weight_bytes(self.frontend.model().name)
        return sum(node.weight_bytes for node in nodes)

    @property
    def current(self) -> Services:
        """Those of the model in memory, else of the first, for its facts."""
        if self.models is None:
            return self
        name = self.models.named("") or ""
        return replace(self, frontend=self.models.listed(name))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The wishes of a request besides its prompt.

    max_tokens: None for as many as fit; 0 to read the prompt only.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    choices: int = 1
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    prefix_cache: bool = True
    ignore_eos: bool = False
    tools: Tools = field(default_factory=Tools)


async def choose(services: Services, name: str) -> tuple[Services, str]:
    """The services of the model that a request names, and its exact name.

    Case, the tag ":latest" and an owner ("owner/") make no difference; no name is the model in
    memory, else the first. Raises HttpError 404 for an unknown name, HearthError.
    """
    models = services.models
    if models is None:
        facts = services.frontend.model()
        known = map(plain, (facts.name, *facts.aliases))
        if not name or services.any_model or plain(name) in known:
            return services, facts.name
        raise unknown_model(name, [facts.name])
    found = models.named(name, services.any_model)
    if found is None:
        raise unknown_model(name, models.names)
    return replace(services, frontend=await models.frontend(found)), found


_DURATION = re.compile(r"([0-9]{1,9}(?:[.][0-9]{1,9})?)(ns|us|µs|ms|s|m|h)")
# Thirty years; a clock has no date for what is much later.
_MOST_KEPT = 1e9
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_seconds(body: Fields) -> float | None:
    """Ollama's keep_alive in seconds, infinite for a negative one; None where it is absent.

    It is a number of seconds, or a duration such as "5m" or "1h30m". Raises HttpError.
    """
    given = body.raw("keep_alive")
    if given is None:
        return None
    if isinstance(given, str):
        text = given.strip()
        parts = _DURATION.findall(text.lstrip("+-"))
        plain_number = text.lstrip("+-").replace(".", "", 1).isdecimal()
        if plain_number:
            seconds = float(text.lstrip("+-")[:20])
        elif parts and "".join(map("".join, parts)) == text.lstrip("+-"):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        else:
            raise body.wrong("keep_alive", given, 'seconds, or a duration such as "5m"')
        return math.inf if text.startswith("-") and seconds else min(seconds, _MOST_KEPT)
    found = body.number("keep_alive") or 0.0
    return math.inf if found < 0 else min(found, _MOST_KEPT)


def keep(services: Services, body: Fields) -> None:
    """Sets how long the model stays in memory, where a request of several models says so."""
    seconds = keep_seconds(body)
    if services.models is not None and seconds is not None:
        services.models.shelf.keep(services.frontend.model().name, seconds)


def max_tokens(body: Fields, *names: str) -> int | None:
    """The first of these fields; None for as many as fit, which some write as -1."""
    given = body.whole(*names)
    if given is None or given == -1:
        return None
    if given < 0:
        name = next(name for name in names if body.has(name))
        raise bad_request(f"{name} is {given}; it must be at least 0, or -1 for no limit", name)
    return given


def stops(body: Fields, name: str = "stop") -> tuple[str, ...]:
    """Stop texts; empty ones stop nothing."""
    return tuple(text for text in body.texts(name) if text)


@asynccontextmanager
async def running(
    call: Call, services: Services, prompts: Sequence[Input], wanted: Wanted
) -> AsyncIterator[list[Answer]]:
    """The answers to each prompt, `wanted.choices` of each, until the block ends.

    max_tokens above the room of the context is clamped. Raises HearthError.
    """
    frontend = services.frontend
    with ExitStack() as stack:
        answers: list[Answer] = []
        for prompt in prompts:
            ids = await frontend.prompt_ids(prompt)
            expected = None
            if isinstance(prompt, Conversation):
                expected = await frontend.expected(prompt, ids)
            chosen = await frontend.constrained(wanted.sampling, wanted.tools, expected)
            room = frontend.room(len(ids))
            # The engine makes one token at least; of 0 its reader sees none.
            limit = wanted.max_tokens if wanted.max_tokens != 0 else 1
            generation = Generation(
                TokenIds(ids),
                max_tokens=limit if limit is not None and limit <= room else 0,
                sampling=chosen,
                stop=stops_of(wanted.stop, expected),
                request_id=call.id,
                top_logprobs=wanted.top_logprobs,
                prompt_logprobs=wanted.prompt_logprobs,
                ignore_eos=wanted.ignore_eos,
                prefix_cache=wanted.prefix_cache,
                visible=expected.visible if expected is not None else frozenset(),
            )
            for number in range(wanted.choices):
                each = replace(generation, sampling=_numbered(chosen, number))
                answer = stack.enter_context(await frontend.submit(each))
                answer.expected, answer.one_call = expected, wanted.tools.one_call
                answer.only_reads = wanted.max_tokens == 0
                answer.prompt_scores = len(ids) - 1 if wanted.prompt_logprobs else 0
                answers.append(answer)
        yield answers


def _numbered(sampling: Sampling, number: int) -> Sampling:
    """The sampling of one of several answers to a prompt: each with a seed of its own."""
    if sampling.seed is None or not number:
        return sampling
    return replace(sampling, seed=(sampling.seed + number) & SEED_MASK)
