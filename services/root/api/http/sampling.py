"""Sampling in requests of all faces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from hearth.root.api.frontend import Frontend
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.formats import constraint_of
from hearth.root.engine.params import MAX_BIASES, Sampling

if TYPE_CHECKING:
    from hearth.root.api.http.requests import Services

# A random seed of 64 bits; clients also send negative ones.
SEED_MASK = (1 << 64) - 1
# top_p of 0 keeps the most likely token; the sampler wants a number above 0.
_LEAST_TOP_P = 1e-6
# OpenAI's bounds of the penalties, to both sides; llama.cpp and Ollama have none.
_MOST_PENALTY = 2.0
# The bias of a token that is never chosen, and the bounds of token ids.
_MOST_BIAS = 100.0
_MOST_IDS = 10**9
# The seed by which clients of every face ask for a random one, and llama.cpp's, which has 32 bits
# without a sign.
_RANDOM_SEED = -1
_RANDOM_SEED_OF_LLAMA = 0xFFFFFFFF
# The least and the most of numbers that llama.cpp takes however large they are.
_BOUNDS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 10.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}


async def sampling(services: Services, body: Fields, *, as_llama: bool = False) -> Sampling:
    """Sampling by the fields that all faces share. Raises HttpError, HearthError.

    Where the request says nothing, the model's own defaults (generation_config.json) count; where
    it has none, a temperature of 1. as_llama: by the rules of llama.cpp and Ollama, where no number
    is too large.
    """
    frontend = services.frontend
    defaults = frontend.model().sampling_defaults

    def number(default: float, name: str, *others: str) -> float:
        given = (body.number(each) for each in (name, *others))
        found = next((value for value in given if value is not None), None)
        if found is None:
            return defaults.get(name, default)
        if as_llama:
            least, most = _BOUNDS[name]
            return min(max(found, least), most)
        return found

    def penalty(name: str) -> float:
        found = number(0.0, name)
        if not as_llama and abs(found) > _MOST_PENALTY:
            raise bad_request(f"{name} is {found}; it must be in [-2, 2]", name)
        return found

    top_k = body.whole("top_k")
    seed = body.whole("seed")
    if seed == _RANDOM_SEED or (as_llama and seed == _RANDOM_SEED_OF_LLAMA):
        seed = None
    return Sampling(
        temperature=number(1.0, "temperature"),
        # -1, too, keeps all.
        top_k=max(0, int(defaults.get("top_k", 0)) if top_k is None else top_k),
        top_p=number(1.0, "top_p") or _LEAST_TOP_P,
        min_p=number(0.0, "min_p"),
        repetition_penalty=number(1.0, "repetition_penalty", "repeat_penalty"),
        seed=None if seed is None else seed & SEED_MASK,
        presence_penalty=penalty("presence_penalty"),
        frequency_penalty=penalty("frequency_penalty"),
        logit_bias=await _biases(frontend, body, as_llama),
        constraint=constraint_of(body),
    )


async def _biases(
    frontend: Frontend, body: Fields, as_llama: bool
) -> tuple[tuple[int, float], ...]:
    """logit_bias: an object of tokens and numbers as OpenAI has it, or llama.cpp's list of pairs.

    A token is its id, or a text: then it stands for all tokens of the text. The number false means
    never. Several numbers for one token add up.
    """
    given = body.values.get("logit_bias")
    if given is None or given is False:
        return ()
    if not isinstance(given, dict | list):
        raise body.wrong("logit_bias", given, "an object, or a list of pairs")
    if len(given) > MAX_BIASES:
        raise bad_request(
            f"logit_bias has {len(given)} tokens; at most {MAX_BIASES} are allowed", "logit_bias"
        )
    # A list is llama.cpp's own form, with its bounds on any face.
    bounded = isinstance(given, dict) and not as_llama
    pairs: Iterable[Any] = given.items() if isinstance(given, dict) else given
    found: dict[int, float] = {}
    async for token, bias in _tokens(frontend, pairs, numbers=isinstance(given, dict)):
        if bounded and abs(bias) > _MOST_BIAS:
            raise bad_request(
                f"logit_bias of token {token} is {bias}; it must be in [-100, 100]", "logit_bias"
            )
        total = found.get(token, 0.0) + bias
        found[token] = min(max(total, -_MOST_BIAS), _MOST_BIAS)
    return tuple((token, bias) for token, bias in found.items() if bias)


async def _tokens(
    frontend: Frontend, pairs: Iterable[Any], numbers: bool
) -> AsyncIterator[tuple[int, float]]:
    """Token ids with their biases. numbers: a text of digits is an id. Raises HttpError."""
    for pair in pairs:
        match pair:
            case [int() as token, bias] if not isinstance(token, bool) and 0 <= token < _MOST_IDS:
                yield token, _bias(bias)
            case [str() as text, bias] if numbers and text.isascii() and text.isdigit():
                if len(text) > 9:
                    problem = f"logit_bias.{text[:40]} must be the id of a token, or a text"
                    raise bad_request(problem, "logit_bias")
                yield int(text), _bias(bias)
            case [str() as text, bias]:
                amount = _bias(bias)
                for token in await frontend.tokenize(text, add_special=False):
                    yield token, amount
            case _:
                raise bad_request(
                    "logit_bias as a list must have pairs of a token's id or text and a number, or "
                    "false for never",
                    "logit_bias",
                )


def _bias(value: object) -> float:
    """A number of logit_bias. Raises HttpError."""
    if value is False:
        return -_MOST_BIAS
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    raise bad_request("logit_bias must have finite numbers, or false for never", "logit_bias")
