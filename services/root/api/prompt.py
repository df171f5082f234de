"""Prompts, token ids and conversations: checked for size, then turned into token ids."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hearth.common.errors import HearthError, Reason
from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.api.infill import Infill, check_texts, infill_ids
from hearth.root.engine.params import check_text, invalid

# Longer prompts, in bytes per position of the context, are refused without tokenizing. They cannot
# fit, and tokenizing 4 MiB takes 10 s and 250 MiB. Text has 2 to 6 bytes a token.
MAX_BYTES_PER_POSITION = 32
# Bytes that a message counts for besides its texts: an empty one costs memory too.
_MESSAGE_BYTES = 8
# Behind the text that an answer goes on with, while the template renders it: characters of private
# use, which no text means.
_MARK = "\ue1f7\ue08d\ue5a3"
# Messages with these fields alone need no change for any template.
_PLAIN = frozenset({"role", "content"})


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text to continue."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Tokens to continue, used as they are."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Texts and tokens to continue, one after the other. A text in front has the model's BOS."""

    pieces: Sequence[str | int]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to answer; JSON values as chat templates expect them.

    messages: read once, in a tokenizing thread; each has at least "role" and "content".
    tools: functions that the model may call, each {"type": "function", "function": {"name",
    "description", "parameters"}}. variables: further names for the template. turn: the prompt opens
    the assistant's turn. continued: the answer goes on with the last message, without a turn.
    """

    messages: Iterable[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    turn: bool = True
    continued: bool = False


Input: TypeAlias = Prompt | TokenIds | Pieces | Conversation | Infill


def input_ids(tokenizer: Tokenizer, given: Input, context_size: int) -> tuple[int, ...]:
    """Token ids of any input. Raises HearthError, PROMPT_TOO_LONG for what cannot fit."""
    match given:
        case Prompt(text):
            check_size("prompt", len(check_text("prompt", text).encode()), context_size)
            return prompt_ids(tokenizer, text)
        case TokenIds(ids):
            check_count(len(ids), context_size)
            return tuple(ids)
        case Pieces(pieces):
            texts = [piece for piece in pieces if isinstance(piece, str)]
            size = sum(len(check_text("prompt", text).encode()) for text in texts)
            check_size("prompt", size, context_size)
            check_count(len(pieces) - len(texts), context_size)
            return piece_ids(tokenizer, pieces)
        case Infill():
            check_size("text around the gap", check_texts(given), context_size)
            return infill_ids(tokenizer, given)
        case Conversation():
            messages = checked(given, context_size)
            return conversation_ids(
                tokenizer,
                messages,
                given.tools,
                context_size,
                given.variables,
                turn=given.turn,
                continued=given.continued,
            )


def checked(given: Conversation, context_size: int) -> Sequence[Mapping[str, Any]]:
    """The messages of a conversation, read once. Raises HearthError PROMPT_TOO_LONG."""
    size = sum(len(json.dumps(each)) for each in (given.tools, given.variables) if each)
    read: list[Mapping[str, Any]] = []
    for number, message in enumerate(given.messages, 1):
        size += _MESSAGE_BYTES + sum(map(_size, message.values()))
        # Now, not at the end: millions of empty messages would fill the memory.
        check_size(f"conversation up to message {number}", size, context_size)
        read.append(message)
    return read


def check_size(what: str, size: int, context_size: int) -> None:
    """HearthError PROMPT_TOO_LONG where a text of `size` bytes is not worth tokenizing."""
    limit = MAX_BYTES_PER_POSITION * context_size
    if size > limit:
        raise HearthError(
            Reason.PROMPT_TOO_LONG,
            f"the {what} has {size} bytes, and at most {limit} are read "
            f"({MAX_BYTES_PER_POSITION} for each of the {context_size} positions of the context); "
            "shorten it, or use a larger --context (a root's, where one serves the model)",
            {"bytes": size, "maxBytes": limit, "contextSize": context_size},
        )


def check_count(count: int, context_size: int) -> None:
    """HearthError PROMPT_TOO_LONG for more token ids than the context has positions."""
    if count > context_size:
        raise HearthError(
            Reason.PROMPT_TOO_LONG,
            f"{count} token ids were given, and the context has {context_size} positions",
            {"promptTokens": count, "contextSize": context_size},
        )


def prompt_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, with the model's begin-of-sequence rule; or HearthError.

    Names of control tokens in it become those tokens, as in llama.cpp and vLLM: the caller of a
    raw prompt writes the model's format.
    """
    ids = tokenizer.encode(check_text("prompt", text))
    if not ids and tokenizer.bos_id is not None:
        # Something must be computed for a first token to follow.
        return (tokenizer.bos_id,)
    return tuple(ids)


def piece_ids(tokenizer: Tokenizer, pieces: Sequence[str | int]) -> tuple[int, ...]:
    """Token ids of texts and token ids, one after the other; names in texts as in `prompt_ids`."""
    ids: list[int] = []
    for number, piece in enumerate(pieces):
        if isinstance(piece, int):
            ids.append(piece)
            continue
        if not number and tokenizer.add_bos and tokenizer.bos_id is not None:
            ids.append(tokenizer.bos_id)
        ids += tokenizer.encode(piece, add_special=False)
    return tuple(ids)


def conversation_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    context_size: int | None = None,
    variables: Mapping[str, Any] | None = None,
    *,
    turn: bool = True,
    continued: bool = False,
) -> tuple[int, ...]:
    """Token ids of a conversation up to the assistant's turn.

    context_size: bounds the prompt that the template makes, as it bounds other prompts. turn,
    continued: see `Conversation`.

    Names of control tokens in the messages are text: only the template makes control tokens.
    HearthError when the model has no chat template, or when the template refuses the messages.
    """
    prompt = _rendered(tokenizer, messages, tools, context_size, variables, turn, continued)
    try:
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt, add_special=False)
        else:
            ids = tokenizer.encode_pieces(prompt)
    except ModelError as error:
        raise invalid(f"the conversation cannot become a prompt: {error}") from error
    # Templates differ in whether they write the begin-of-sequence token themselves.
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    return tuple(ids)


def conversation_text(tokenizer: Tokenizer, given: Conversation, context_size: int) -> str:
    """The prompt of a conversation as text. Raises HearthError as `conversation_ids` does."""
    messages = checked(given, context_size)
    prompt = _rendered(
        tokenizer,
        messages,
        given.tools,
        context_size,
        given.variables,
        given.turn,
        given.continued,
    )
    pieces = [prompt] if isinstance(prompt, str) else prompt
    return "".join(
        tokenizer.token_text(piece) if isinstance(piece, int) else piece for piece in pieces
    )


def _rendered(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    context_size: int | None,
    variables: Mapping[str, Any] | None,
    turn: bool,
    continued: bool,
) -> str | Sequence[str | int]:
    """The prompt that the chat template makes, as text or in pieces. Raises HearthError."""
    from hearth.converter.conversation import conversation_pieces
    from hearth.root.api.tools.adapting import Adapted, adapted
    from hearth.root.api.tools.discovery import facts_of

    template = tokenizer.template_for(bool(tools))
    if template is None:
        raise HearthError(
            Reason.NO_CHAT_TEMPLATE,
            "this model has no chat template, so a conversation cannot become a prompt; "
            "write the prompt as text",
        )
    if not messages:
        raise invalid("the conversation has 0 messages; give at least 1")
    for message in messages:
        texts = [value for value in message.values() if isinstance(value, str)]
        check_text(f"message of role {message['role']!r}", "".join(texts))
    try:
        limit = None if context_size is None else _rendered_limit(context_size)
        if continued:
            messages = _marked(messages)
        made = Adapted(messages, tools or None)
        if tools or any(m.keys() - _PLAIN or m["role"] == "tool" for m in messages):
            made = adapted(messages, tools, template, facts_of(tokenizer, bool(tools)))
        prompt = conversation_pieces(
            tokenizer,
            made.messages,
            made.tools,
            variables={**(variables or {}), **made.variables},
            limit=limit,
            turn=turn and not continued,
        )
        if continued:
            prompt = _up_to_mark(prompt)
        pieces = [prompt] if isinstance(prompt, str) else prompt
        size = sum(len(piece.encode()) for piece in pieces if isinstance(piece, str))
    except RecursionError:
        problem = "the conversation cannot become a prompt: its values are nested too deeply"
        raise invalid(problem) from None
    except (ModelError, UnicodeEncodeError) as error:
        raise invalid(f"the conversation cannot become a prompt: {error}") from error
    if context_size is not None:
        check_size("prompt made by the chat template", size, context_size)
    return prompt


def _marked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with a mark behind the last one's text. Raises HearthError."""
    last = messages[-1]
    said = last["content"] if isinstance(last["content"], str) else ""
    if last["role"] != "assistant" or not said.strip():
        raise invalid(
            "continue_final_message is true; then the last message must be the assistant's, with a "
            "text to go on with",
            field="continue_final_message",
        )
    return [*messages[:-1], {**last, "content": said + _MARK}]


def _up_to_mark(prompt: str | Sequence[str | int]) -> list[str | int]:
    """The prompt up to the mark, which is there once. Raises HearthError."""
    pieces = [prompt] if isinstance(prompt, str) else [*prompt]
    texts = [piece if isinstance(piece, str) else "" for piece in pieces]
    if sum(text.count(_MARK) for text in texts) != 1:
        raise invalid(
            "the last message cannot be continued: this model's chat template changes its text",
            field="continue_final_message",
        )
    number = next(number for number, text in enumerate(texts) if _MARK in text)
    return [*pieces[:number], texts[number].partition(_MARK)[0]]


def _rendered_limit(context_size: int) -> int:
    """Bytes that a template may make before it is stopped: more than fit, so that a conversation
    which is only too long is refused as that."""
    return 2 * MAX_BYTES_PER_POSITION * context_size + (1 << 16)


def _size(value: object) -> int:
    """Bytes of one value of a message."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return len(json.dumps(value))
