"""Python values to and from hearth.v1 messages, the same for both clients."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypedDict

import grpc

from hearth.client.errors import HearthError, InvalidArgument
from hearth.v1 import root_pb2

# Texts of one prompt at once.
MAX_SAMPLES = 64


class FinishReason(StrEnum):
    """Reason for the regular end of a generation."""

    # End-of-sequence token; max_tokens reached; a stop text met; the model's context full.
    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"
    CONTEXT = "context"


@dataclass(frozen=True, slots=True)
class Usage:
    """Cost of a generation; seconds by the root's clock."""

    prompt_tokens: int
    completion_tokens: int
    # Waiting for a place in a batch; then until the first token; then from first to last token.
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    # Tokens of the prompt that the root's prefix cache had: they were not computed.
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made. arguments: a JSON object, as text."""

    id: str
    name: str
    arguments: str

    @property
    def values(self) -> dict[str, Any]:
        """The arguments as Python values."""
        found: dict[str, Any] = json.loads(self.arguments)
        return found


class GenerateOptions(TypedDict, total=False):
    """Options of `generate`; the root has defaults for all of them.

    max_tokens: 0, the default, means as many as fit the context. temperature: 0 is greedy,
    [0, 100]. top_k: 0 keeps all. top_p: (0, 1]. min_p: [0, 1]. repetition_penalty: (0, 10].
    seed: the same seed gives the same text. stop: at most 16 texts that end the generation and are
    not part of it. ignore_eos: continue past the end-of-sequence token. timeout: seconds for the
    whole call. on_waiting: called with the reason while no text comes because the cluster is not
    ready, and with "" when it is again. request_id: the name in the root's log, at most 64
    letters, digits, dots, dashes and underscores; one is drawn where none is given. model: the
    name of one of several models.

    One of these gives the text a form, which no token leaves: json_object (True), json_schema (a
    mapping, or JSON), regex, grammar (llama.cpp's GBNF, or llguidance's Lark).

    With messages: tools are functions that the model may call. Each is a mapping with name,
    description and parameters (a JSON Schema), alone or in OpenAI's form under "function". strict
    (True) in one holds its arguments to the schema. tool_choice: "auto", "none", "required", or
    the name of a tool. one_call: at most one call. separate_reasoning: reasoning is not part of
    the text; with tools it never is. thinking: switches reasoning on or off where the model's
    template can. on_reasoning: called with each piece of it.
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
    on_waiting: Callable[[str], object]
    request_id: str
    model: str
    json_object: bool
    json_schema: Mapping[str, object] | str | None
    regex: str | None
    grammar: str | None
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str
    one_call: bool
    separate_reasoning: bool
    thinking: bool | None
    on_reasoning: Callable[[str], object]


# A message of a conversation: role and content; of an assistant also "tool_calls" (of ToolCall, or
# in OpenAI's form) and "reasoning"; of a tool also "tool_call_id" and "name".
Message = Mapping[str, Any]

_POOLINGS = {
    "": root_pb2.POOLING_UNSPECIFIED,
    "mean": root_pb2.POOLING_MEAN,
    "cls": root_pb2.POOLING_CLS,
    "last": root_pb2.POOLING_LAST,
}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def generate_request(
    prompt: str | None,
    tokens: Iterable[int] | None,
    messages: Iterable[Message] | None,
    options: GenerateOptions,
) -> root_pb2.GenerateRequest:
    """The message. Raises TypeError unless one input is given, InvalidArgument for bad values."""
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
                _add_message(request.conversation, message)
        stop = options.get("stop", ())
        request.stop.extend([stop] if isinstance(stop, str) else stop)
        request.max_tokens = options.get("max_tokens", 0)
        request.ignore_eos = options.get("ignore_eos", False)
        request.model = options.get("model", "")
        _add_tools(request, options)
    except (ValueError, TypeError) as error:
        # Numbers out of a field's range and text that is not UTF-8 never reach the root.
        raise _invalid(str(error)) from error
    for name in _SAMPLING:
        value = options.get(name)
        if value is not None:
            try:
                setattr(request.sampling, name, value)
            except (ValueError, TypeError) as error:
                raise _invalid(f"{name} is {value!r}: {error}") from error
    _constrain(request.sampling, options)
    unknown = set(options) - set(GenerateOptions.__annotations__)
    if unknown:
        raise TypeError(f"generate() has no option {', '.join(sorted(unknown))}")
    return request


def sample_options(samples: int, options: GenerateOptions) -> list[GenerateOptions]:
    """The options of each of several texts of one prompt: each with a seed of its own.

    Raises ValueError for fewer than one or more than 64.
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise ValueError(f"samples is {samples}; it must be in 1 to {MAX_SAMPLES}")
    seed = options.get("seed")
    if seed is None:
        return [options] * samples
    return [{**options, "seed": (seed + i) % (1 << 64)} for i in range(samples)]


def _add_message(conversation: root_pb2.Conversation, message: Message) -> None:
    """Adds a message. Raises TypeError and ValueError for what the message cannot hold."""
    given = {name: value for name, value in message.items() if value is not None}
    calls = given.pop("tool_calls", ())
    added = conversation.messages.add(**given)
    for call in calls:
        if isinstance(call, ToolCall):
            added.tool_calls.add(id=call.id, name=call.name, arguments=call.arguments)
            continue
        function = call.get("function", call)
        arguments = function.get("arguments", "")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        added.tool_calls.add(id=call.get("id", ""), name=function["name"], arguments=text)


def _add_tools(request: root_pb2.GenerateRequest, options: GenerateOptions) -> None:
    """Sets tools and reasoning. Raises TypeError and ValueError."""
    for tool in options.get("tools", ()):
        function = tool.get("function", tool)
        parameters = function.get("parameters") or {}
        request.tools.add(
            name=function.get("name", ""),
            description=function.get("description") or "",
            parameters=parameters if isinstance(parameters, str) else json.dumps(parameters),
            strict=bool(function.get("strict", tool.get("strict"))),
        )
    match options.get("tool_choice", "auto"):
        case "auto":
            pass
        case "none":
            request.tool_choice.none = True
        case "required":
            request.tool_choice.required = True
        case name:
            request.tool_choice.name = name
    request.one_call = options.get("one_call", False)
    request.separate_reasoning = options.get("separate_reasoning", False)
    thinking = options.get("thinking")
    if thinking is not None:
        request.thinking = thinking


def embed_request(
    texts: Iterable[str | Iterable[int]],
    pooling: str,
    truncate: bool,
    normalize: bool,
    model: str,
) -> root_pb2.EmbedRequest:
    """The message. Raises InvalidArgument for text that is not UTF-8, or an unknown pooling."""
    if pooling not in _POOLINGS:
        raise _invalid(f"pooling is {pooling!r}; it must be one of {', '.join(_POOLINGS)}")
    request = root_pb2.EmbedRequest(
        pooling=_POOLINGS[pooling], truncate=truncate, raw=not normalize, model=model
    )
    try:
        for text in texts:
            added = request.inputs.add()
            if isinstance(text, str):
                added.text = text
            else:
                added.tokens.SetInParent()
                added.tokens.ids.extend(text)
    except ValueError as error:
        raise _invalid(str(error)) from error
    return request


def _constrain(sampling: root_pb2.SamplingParams, options: GenerateOptions) -> None:
    """Set the form of the text. Raises TypeError for two of them, InvalidArgument."""
    schema = options.get("json_schema")
    if schema is not None and not isinstance(schema, str):
        schema = json.dumps(schema)
    given: dict[str, bool | str | None] = {
        "json_object": options.get("json_object") or None,
        "json_schema": schema,
        "regex": options.get("regex"),
        "grammar": options.get("grammar"),
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise TypeError(f"give one of {' and '.join(names)}")
    for name in names:
        try:
            setattr(sampling.constraint, name, given[name])
        except (ValueError, TypeError) as error:
            raise _invalid(f"{name} is {given[name]!r:.100}: {error}") from error


def tokenize_request(text: str, add_special: bool) -> root_pb2.TokenizeRequest:
    """The message. Raises InvalidArgument for text that is not UTF-8."""
    try:
        return root_pb2.TokenizeRequest(text=text, add_special=add_special)
    except ValueError as error:
        raise _invalid(str(error)) from error


def detokenize_request(ids: Iterable[int]) -> root_pb2.DetokenizeRequest:
    """The message. Raises InvalidArgument for ids that do not fit 32 bits."""
    try:
        return root_pb2.DetokenizeRequest(ids=ids)
    except ValueError as error:
        raise _invalid(str(error)) from error


class Progress:
    """The received part of one generation."""

    def __init__(
        self,
        on_waiting: Callable[[str], object] = lambda reason: None,
        on_reasoning: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._on_waiting = on_waiting
        self._on_reasoning = on_reasoning
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: list[ToolCall] = []
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None

    def add(self, response: root_pb2.GenerateResponse) -> str:
        """Add a message; returns its text, which may be empty."""
        if response.HasField("delta"):
            delta = response.delta
            self.token_ids.extend(delta.token_ids)
            for call in delta.tool_calls:
                self.tool_calls.append(ToolCall(call.id, call.name, call.arguments))
            if delta.reasoning:
                self.reasoning.append(delta.reasoning)
                self._on_reasoning(delta.reasoning)
            if delta.text:
                self.texts.append(delta.text)
            return delta.text
        if response.HasField("waiting"):
            self._on_waiting(response.waiting.reason)
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
                done.usage.cached_tokens,
            )
        return ""

    def check_ended(self, address: str) -> None:
        """Raise HearthError when the stream ended without its last message."""
        if self.finish_reason is None:
            raise HearthError(
                f"the root at {address} ended the stream after {len(self.token_ids)} tokens "
                "without a reason; root and client may have different versions",
                reason="INCOMPLETE_STREAM",
            )


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(
        message, reason="INVALID_ARGUMENT", code=grpc.StatusCode.INVALID_ARGUMENT
    )
