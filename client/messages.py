"""Python values to and from hearth.v1 messages, the same for both clients."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

import grpc

from hearth.client.errors import HearthError, InvalidArgument
from hearth.v1 import root_pb2


class FinishReason(StrEnum):
    """Why a generation ended well."""

    # End-of-sequence token; max_tokens reached; a stop text met; the model's context full.
    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"
    CONTEXT = "context"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation cost; seconds by the root's clock."""

    prompt_tokens: int
    completion_tokens: int
    # Waiting for a place in a batch; then until the first token; then from first to last token.
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


class GenerateOptions(TypedDict, total=False):
    """What `generate` takes besides its input; what is left out is the root's default.

    max_tokens: 0 or left out is as many as the context has room for. temperature: 0 is greedy,
    [0, 100]. top_k: 0 keeps all. top_p: (0, 1]. min_p: [0, 1]. repetition_penalty: (0, 10].
    seed: same seed, same text. stop: at most 16 texts that end the generation and are not part of
    it. ignore_eos: go on past the end-of-sequence token. timeout: seconds for the whole call.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    timeout: float | None


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def generate_request(
    prompt: str | None,
    tokens: Iterable[int] | None,
    messages: Iterable[Mapping[str, str]] | None,
    options: GenerateOptions,
) -> root_pb2.GenerateRequest:
    """The message; TypeError unless exactly one input is given, InvalidArgument for bad values."""
    if (prompt is not None) + (tokens is not None) + (messages is not None) != 1:
        raise TypeError("give exactly one of prompt, tokens= and messages=")
    request = root_pb2.GenerateRequest()
    try:
        if prompt is not None:
            request.prompt = prompt
        elif tokens is not None:
            request.tokens.SetInParent()
            request.tokens.ids.extend(tokens)
        elif messages is not None:
            request.conversation.SetInParent()
            for message in messages:
                request.conversation.messages.add(**message)
        stop = options.get("stop", ())
        request.stop.extend([stop] if isinstance(stop, str) else stop)
        request.max_tokens = options.get("max_tokens", 0)
        request.ignore_eos = options.get("ignore_eos", False)
    except (ValueError, TypeError) as error:
        # Numbers that no field can hold, and text that is no UTF-8, never get to the root.
        raise _invalid(str(error)) from error
    for name in _SAMPLING:
        value = options.get(name)
        if value is not None:
            try:
                setattr(request.sampling, name, value)
            except (ValueError, TypeError) as error:
                raise _invalid(f"{name} is {value!r}: {error}") from error
    unknown = set(options) - set(GenerateOptions.__annotations__)
    if unknown:
        raise TypeError(f"generate() has no option {', '.join(sorted(unknown))}")
    return request


def tokenize_request(text: str, add_special: bool) -> root_pb2.TokenizeRequest:
    try:
        return root_pb2.TokenizeRequest(text=text, add_special=add_special)
    except ValueError as error:
        raise _invalid(str(error)) from error


def detokenize_request(ids: Iterable[int]) -> root_pb2.DetokenizeRequest:
    try:
        return root_pb2.DetokenizeRequest(ids=ids)
    except ValueError as error:
        raise _invalid(str(error)) from error


class Progress:
    """What has arrived of one generation."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None

    def add(self, response: root_pb2.GenerateResponse) -> str:
        """Takes a message in; the text that it brings, possibly none."""
        if response.HasField("delta"):
            self.token_ids.extend(response.delta.token_ids)
            return response.delta.text
        if response.HasField("done"):
            done = response.done
            name = root_pb2.FinishReason.Name(done.finish_reason)
            self.finish_reason = FinishReason(name.removeprefix("FINISH_REASON_").lower())
            self.usage = Usage(
                done.usage.prompt_tokens,
                done.usage.completion_tokens,
                done.usage.queue_seconds,
                done.usage.prefill_seconds,
                done.usage.decode_seconds,
            )
        return ""

    def check_ended(self, address: str) -> None:
        """HearthError when the stream ended without its last message."""
        if self.finish_reason is None:
            raise HearthError(
                f"the root at {address} ended the stream after {len(self.token_ids)} tokens "
                "without saying why; root and client may be of different versions",
                reason="INCOMPLETE_STREAM",
            )


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(
        message, reason="INVALID_ARGUMENT", code=grpc.StatusCode.INVALID_ARGUMENT
    )
