"""Log probabilities of tokens, in the two shapes that OpenAI has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hearth.root.api.frontend import Frontend
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.engine.mailbox import TokenScore
from hearth.root.engine.params import MAX_TOP_LOGPROBS

Object = dict[str, Any]

_LEAST_LOGPROB = -9999.0
# The word of a response's `include` that asks for them.
_INCLUDED = "message.output_text.logprobs"


def wanted_of_chat(body: Fields) -> int | None:
    """The alternatives that a chat asks for; None where it asks for no log probabilities."""
    top = body.count("top_logprobs", 0, MAX_TOP_LOGPROBS, 0)
    given = body.raw("logprobs")
    if isinstance(given, int | float) and not isinstance(given, bool):
        # The number of completions, as some clients send it here too.
        number = body.count("logprobs", 0, MAX_TOP_LOGPROBS, 0)
        return top or number
    if body.flag("logprobs"):
        return top
    if top:
        raise bad_request(f"top_logprobs is {top}; it needs logprobs: true", "top_logprobs")
    return None


def wanted_of_responses(body: Fields) -> int | None:
    """The alternatives that a response asks for, by `include` or by `top_logprobs`; else None."""
    top = body.count("top_logprobs", 0, MAX_TOP_LOGPROBS, 0)
    return top if top or _INCLUDED in body.items("include") else None


def wanted_of_ollama(body: Fields) -> int | None:
    """The alternatives that Ollama's `logprobs` and `top_logprobs` ask for; else None."""
    top = body.count("top_logprobs", 0, MAX_TOP_LOGPROBS, 0)
    return top if body.flag("logprobs") else None


def wanted_of_completion(body: Fields) -> int | None:
    """The alternatives that a completion asks for, or None."""
    if not body.has("logprobs") or body.values["logprobs"] is False:
        return None
    return body.count("logprobs", 0, MAX_TOP_LOGPROBS, 0)


class ChatLogprobs:
    """Those of a chat."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    def __call__(self, scores: Sequence[TokenScore]) -> Object | None:
        """Those of some tokens; None for none."""
        if not scores:
            return None
        return {"content": self.entries(scores), "refusal": None}

    def entries(self, scores: Sequence[TokenScore]) -> list[Object]:
        """An entry for each token."""
        return [
            self._entry(score.token, score.logprob)
            | {"top_logprobs": [self._entry(token, value) for token, value in score.top]}
            for score in scores
        ]

    def _entry(self, token: int, logprob: float) -> Object:
        return {
            "token": self._frontend.token_name(token),
            "logprob": _sent(logprob),
            "bytes": list(self._frontend.token_bytes(token)),
        }


class LlamaLogprobs:
    """Those of llama.cpp's /completion, by `n_probs`."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    def __call__(self, scores: Sequence[TokenScore]) -> Object:
        """The field with those of some tokens; empty for none."""
        if not scores:
            return {}
        return {
            "completion_probabilities": [
                self._entry(score.token, score.logprob)
                | {"top_logprobs": [self._entry(token, value) for token, value in score.top]}
                for score in scores
            ]
        }

    def _entry(self, token: int, logprob: float) -> Object:
        return {
            "id": token,
            "token": self._frontend.token_name(token),
            "bytes": list(self._frontend.token_bytes(token)),
            "logprob": _sent(logprob),
        }


class CompletionLogprobs:
    """Those of one completion; it counts characters, for their offsets in the text."""

    def __init__(self, frontend: Frontend, offset: int, first: int | None = None) -> None:
        """offset: characters before the first of the tokens.

        first: a token before them without a log probability, as the first of a prompt.
        """
        self._frontend = frontend
        self._offset = offset
        self._first = first

    def __call__(self, scores: Sequence[TokenScore]) -> Object | None:
        """Those of the next tokens; None for none."""
        if not scores:
            return None
        name = self._frontend.token_name
        ids = [score.token for score in scores]
        values: list[float | None] = [_sent(score.logprob) for score in scores]
        tops: list[Object | None] = [
            {name(token): _sent(value) for token, value in reversed(score.top)} for score in scores
        ]
        if self._first is not None:
            ids, values, tops = [self._first, *ids], [None, *values], [None, *tops]
            self._first = None
        offsets: list[int] = []
        for token in ids:
            offsets.append(self._offset)
            # A control token has a name, and no text.
            self._offset += len(name(token)) if self._frontend.token_bytes(token) else 0
        return {
            "tokens": [name(token) for token in ids],
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def _sent(logprob: float) -> float:
    """A log probability as JSON: it has no infinity, and OpenAI writes -9999 for it."""
    return max(_LEAST_LOGPROB, logprob)
