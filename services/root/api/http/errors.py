"""Errors as HTTP statuses, and their bodies in the shape of each face."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hearth.common.errors import HearthError, Reason
from hearth.root.api.prompt import MAX_BYTES_PER_POSITION

# Seconds after which a client may repeat a request.
_RETRY_SECONDS = 5
_MESSAGE_LIMIT = 2000


@dataclass(eq=False)
class HttpError(Exception):
    """An error that ends a request. kind, code, param: OpenAI's; claude: Anthropic's type."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    claude: str = "invalid_request_error"
    # Anthropic's status where it differs.
    claude_status: int = 0
    # Wording that Anthropic's clients read, where it differs.
    claude_message: str = ""
    # True if the same request may succeed a little later.
    again: bool = False
    # True if what follows on the connection may be a part of this request.
    closes: bool = False

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Headers of the answer."""
        found = [("retry-after", str(_RETRY_SECONDS))] if self.again else []
        return [*found, ("connection", "close")] if self.closes else found


def bad_request(message: str, param: str | None = None) -> HttpError:
    """400, for what repeating cannot mend."""
    return HttpError(400, message, param=param)


def two_lengths() -> HttpError:
    """400 for a body whose end a proxy may see elsewhere (RFC 9112, section 6.3)."""
    problem = "the request has both Content-Length and Transfer-Encoding; send one of them"
    return HttpError(400, problem, closes=True)


def unknown_model(wanted: str, served: Sequence[str]) -> HttpError:
    """404 for the name of a model that is not served."""
    return HttpError(
        404,
        f"the model {wanted[:200]!r} does not exist here; this root serves "
        f"{', '.join(map(repr, served))[:1000]}",
        code="model_not_found",
        param="model",
        claude="not_found_error",
    )


def not_found(method: str, path: str) -> HttpError:
    """404 for a path that is not served."""
    return HttpError(
        404, f"there is no {method} {path[:200]} at this root", claude="not_found_error"
    )


def wrong_method(method: str, path: str) -> HttpError:
    """405."""
    return HttpError(405, f"{path[:200]} does not take {method}", claude="not_found_error")


def too_large(limit: int) -> HttpError:
    """413."""
    return HttpError(
        413,
        f"the request's body is larger than {limit} bytes",
        claude="request_too_large",
    )


def head_too_large(limit: int) -> HttpError:
    """431."""
    return HttpError(431, f"the request's line and headers are larger than {limit} bytes")


def encoded_body(encoding: str) -> HttpError:
    """415 for a body that is compressed."""
    return HttpError(
        415,
        f"the body has the Content-Encoding {encoding[:40]!r}; send it as it is, uncompressed",
    )


def too_slow(seconds: float) -> HttpError:
    """408 for a body that does not come in time."""
    return HttpError(408, f"the request's body did not come within {seconds:g} s")


def forbidden(message: str) -> HttpError:
    """403."""
    return HttpError(403, message, claude="permission_error")


def unforeseen(what: str, error: Exception) -> HttpError:
    """500 for a bug in Hearth."""
    return HttpError(
        500,
        f"{what} failed on the root: {type(error).__name__}; its log has the details",
        kind="server_error",
        claude="api_error",
    )


def http_error(error: HearthError) -> HttpError:
    """The HTTP error of a HearthError."""
    message = error.message[:_MESSAGE_LIMIT]
    match error.reason:
        case Reason.PROMPT_TOO_LONG:
            return _too_long(error, message)
        case Reason.INVALID_ARGUMENT | Reason.NO_CHAT_TEMPLATE:
            default = "messages" if error.reason == Reason.NO_CHAT_TEMPLATE else None
            return bad_request(message, error.metadata.get("field", default))
        case Reason.OUT_OF_MEMORY:
            return bad_request(message)
        case Reason.UNAUTHENTICATED:
            return HttpError(401, message, code="invalid_api_key", claude="authentication_error")
        case Reason.PERMISSION_DENIED:
            return forbidden(message)
        case Reason.QUEUE_FULL:
            return HttpError(
                429,
                message,
                "rate_limit_error",
                "rate_limit_exceeded",
                claude="rate_limit_error",
                again=True,
            )
        case Reason.INTERNAL | Reason.MODEL_ERROR | Reason.CANCELLED:
            return HttpError(500, message, "server_error", claude="api_error")
        case Reason.DEADLINE:
            return HttpError(504, message, "server_error", "deadline", claude="api_error")
    # The cluster forms, has lost a worker, or shuts down.
    return HttpError(
        503,
        message,
        "server_error",
        error.reason.lower(),
        claude="overloaded_error",
        claude_status=529,
        again=True,
    )


def _too_long(error: HearthError, message: str) -> HttpError:
    """400 in the words that clients look for: LiteLLM, aider and Claude Code read no code."""
    facts = error.metadata
    context = int(facts.get("contextSize", 0))
    asked = facts.get("promptTokens")
    least = math.ceil(int(facts.get("bytes", 0)) / MAX_BYTES_PER_POSITION)
    tokens = int(asked) if asked is not None else max(least, context + 1)
    return HttpError(
        400,
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{'' if asked is not None else 'at least '}{tokens} tokens in the messages: {message}",
        code="context_length_exceeded",
        param="messages",
        claude_message=f"prompt is too long: {tokens} tokens > {context} maximum",
    )


# -- bodies, by face -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """The errors of a face. request_id: its header with the request's name."""

    body: Callable[[HttpError, str], Mapping[str, Any]]
    status: Callable[[HttpError], int]
    request_id: str


def _openai(error: HttpError, request_id: str) -> Mapping[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def _anthropic(error: HttpError, request_id: str) -> Mapping[str, Any]:
    message = error.claude_message or error.message
    return {
        "type": "error",
        "error": {"type": error.claude, "message": message},
        "request_id": request_id,
    }


def _ollama(error: HttpError, request_id: str) -> Mapping[str, Any]:
    return {"error": error.message}


OPENAI = ErrorShape(_openai, lambda error: error.status, "x-request-id")
ANTHROPIC = ErrorShape(_anthropic, lambda error: error.claude_status or error.status, "request-id")
OLLAMA = ErrorShape(_ollama, lambda error: error.status, "x-request-id")


def shape_of(path: str) -> ErrorShape:
    """The shape of errors at a path."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return OLLAMA if path == "/api" or path.startswith("/api/") else OPENAI
