"""Prompts and conversations to token ids, with limits on their size."""

from hearth.common.errors import HearthError, Reason
from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.engine.params import check_text, invalid

# A prompt of more bytes for each position of the context is refused unread: it cannot fit, and to
# find that out by tokenizing 4 MiB takes 10 s and 250 MiB. Text has 2 to 6 bytes a token.
MAX_BYTES_PER_POSITION = 32


def check_size(what: str, size: int, context_size: int) -> None:
    """HearthError PROMPT_TOO_LONG where a text of `size` bytes is not worth tokenizing."""
    limit = MAX_BYTES_PER_POSITION * context_size
    if size > limit:
        raise HearthError(
            Reason.PROMPT_TOO_LONG,
            f"the {what} has {size} bytes, and at most {limit} are read "
            f"({MAX_BYTES_PER_POSITION} for each of the {context_size} positions of the context); "
            "shorten it, or start the root with a larger --context",
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
    """Token ids of a prompt, with the model's begin-of-sequence rule; or HearthError."""
    ids = tokenizer.encode(check_text("prompt", text))
    if not ids and tokenizer.bos_id is not None:
        # Something must be computed for a first token to follow.
        return (tokenizer.bos_id,)
    return tuple(ids)


def conversation_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """Token ids of a conversation, `messages` of role and content, up to the assistant's turn.

    HearthError when the model has no chat template, or when the template refuses the messages.
    """
    from hearth.converter.chat import render

    template = tokenizer.chat_template
    if template is None:
        raise HearthError(
            Reason.NO_CHAT_TEMPLATE,
            "this model has no chat template, so a conversation cannot become a prompt; "
            "write the prompt as text",
        )
    if not messages:
        raise invalid("the conversation has 0 messages; give at least 1")
    for message in messages:
        check_text(f"message of role {message['role']!r}", message["role"] + message["content"])
    eos_id = min(tokenizer.eos_ids, default=None)
    try:
        text = render(
            template,
            messages,
            bos_token=tokenizer.token_text(tokenizer.bos_id),
            eos_token=tokenizer.token_text(eos_id),
        )
        ids = tokenizer.encode(text, add_special=False)
    except ModelError as error:
        raise invalid(f"the conversation cannot become a prompt: {error}") from error
    # Templates differ in whether they write the begin-of-sequence token themselves.
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    return tuple(ids)
