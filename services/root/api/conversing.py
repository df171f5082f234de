"""Requests whose answers have more parts than text: tool calls, and reasoning apart from it."""

from __future__ import annotations

from dataclasses import replace

from hearth.root.api.answer import Answer
from hearth.root.api.frontend import Frontend, Generation
from hearth.root.api.prompt import TokenIds
from hearth.root.api.tools.choice import Tools, stops_of


async def converse(
    frontend: Frontend, request: Generation, tools: Tools, *, deadline: float | None = None
) -> Answer:
    """Queue a request whose answer a `Listener` takes apart. request: with a conversation.

    See `Frontend.submit`, whose errors it raises.
    """
    ids = await frontend.prompt_ids(request.input, deadline)
    frontend.check(request, ids)  # with the words for a prompt, not for token ids
    expected = await frontend.expected(request.input, ids)
    prepared = replace(
        request,
        input=TokenIds(ids),
        sampling=await frontend.constrained(request.sampling, tools, expected),
        stop=stops_of(request.stop, expected),
        visible=expected.visible if expected is not None else frozenset(),
    )
    answer = await frontend.submit(prepared, deadline=deadline)
    answer.expected, answer.one_call = expected, tools.one_call
    return answer
