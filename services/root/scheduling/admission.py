"""Admission of requests: checks that one fits, and computes its final length."""

from hearth.common.errors import HearthError, Reason
from hearth.root.scheduling.batch import FinishReason, Limits, Request


def limit(request: Request, lim: Limits) -> tuple[int, FinishReason]:
    """The number of tokens at which the request ends, and its finish reason then.

    Raises HearthError if the request can never run within `lim`.
    """
    prompt = len(request.prompt)
    if prompt < 1:
        raise HearthError(
            Reason.INVALID_ARGUMENT,
            "the prompt has 0 tokens, and this model has no begin-of-sequence token to start "
            "from; send at least 1 token",
        )
    if prompt >= lim.context_size:
        raise HearthError(
            Reason.PROMPT_TOO_LONG,
            f"the prompt has {prompt} tokens and the context {lim.context_size} positions for "
            "prompt and answer together; shorten the prompt to at most "
            f"{lim.context_size - 1} tokens, or load the model with a larger --context",
            {"promptTokens": prompt, "contextSize": lim.context_size},
        )
    wanted = prompt + request.max_tokens
    # The last token is sampled and never computed, so it needs no position in the cache.
    positions = min(wanted, lim.context_size) - 1 if request.max_tokens else prompt
    if positions > lim.max_pages * lim.page_size:
        raise HearthError(
            Reason.OUT_OF_MEMORY,
            f"{prompt} prompt tokens and {request.max_tokens} new ones need {positions} "
            f"positions of KV cache, which has {lim.max_pages * lim.page_size} "
            f"({lim.max_pages} pages of {lim.page_size}); request fewer tokens, or give the "
            "root more pages",
            {"positions": positions, "maxPages": lim.max_pages, "pageSize": lim.page_size},
        )
    room = min(lim.context_size, lim.max_pages * lim.page_size + 1)
    if request.max_tokens and wanted <= room:
        return wanted, FinishReason.LENGTH
    return room, FinishReason.CONTEXT


def outgrown(length: int, lim: Limits) -> HearthError:
    """Error for a sequence of `length` tokens that no longer fits under new limits."""
    return HearthError(
        Reason.OUT_OF_MEMORY,
        f"the request has {length} tokens so far, the KV cache has room for "
        f"{lim.max_pages * lim.page_size} positions ({lim.max_pages} pages of {lim.page_size})",
        {"positions": length, "maxPages": lim.max_pages, "pageSize": lim.page_size},
    )
