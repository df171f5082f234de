"""Anthropic's messages, as Claude Code and Anthropic's own client use them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hearth.root.api.http import streams
from hearth.root.api.http.call import EVENTS, Call
from hearth.root.api.http.conversations import Message, call_of, document_of, in_turns, text_of
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.fields import Fields
from hearth.root.api.http.requests import (
    ENDED_BY_LENGTH,
    Services,
    Wanted,
    choose,
    max_tokens,
    running,
    stops,
)
from hearth.root.api.http.sampling import sampling
from hearth.root.api.http.tools import claude_tools, new_call_id, template_variables
from hearth.root.api.json_text import loads
from hearth.root.api.prompt import Conversation
from hearth.root.api.spoken import Ended, Part
from hearth.root.api.tools.choice import Tools, thinking
from hearth.root.engine.mailbox import Done, Usage
from hearth.root.scheduling.batch import FinishReason

if TYPE_CHECKING:
    from hearth.root.api.tools.events import ToolCall

Object = dict[str, Any]

# Parts of an assistant's message that a model need not see again.
_DROPPED = ("redacted_thinking",)


async def messages(call: Call, services: Services) -> None:
    """POST /v1/messages."""
    body = await call.json()
    services, model = await choose(services, body.text("model"))
    conversation, tools = await _conversation(body)
    wanted = Wanted(
        await sampling(services, body),
        max_tokens(body, "max_tokens"),
        stops(body, "stop_sequences"),
        tools=tools,
    )
    async with running(call, services, [conversation], wanted) as answers:
        head = {
            "id": f"msg_{call.id}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }
        if body.flag("stream"):
            await streams.send(call, answers, _Stream(head, answers[0].prompt_tokens))
            return
        ((answer, done),) = await streams.collected(answers)
    content: list[Object] = []
    if answer.reasoning:
        content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    content += [{**_tool_use(each), "input": loads(each.arguments)} for each in answer.calls]
    ended = _ended(done)
    await call.reply({**head, "content": content, **ended, "usage": _usage_of(done.usage)})


async def count_tokens(call: Call, services: Services) -> None:
    """POST /v1/messages/count_tokens."""
    body = await call.json()
    services, _ = await choose(services, body.text("model"))
    conversation, _ = await _conversation(body)
    ids = await services.frontend.prompt_ids(conversation)
    await call.reply({"input_tokens": len(ids)})


async def _conversation(body: Fields) -> tuple[Conversation, Tools]:
    tools = claude_tools(body)
    variables = dict(template_variables(body))
    wish = body.child("thinking")
    if wish is not None:
        variables = {**thinking(wish.text("type") != "disabled"), **variables}
    messages = await in_turns(_messages(body))
    return Conversation(messages, tools.given, variables), tools


def _tool_use(call: ToolCall) -> Object:
    """A block of a tool call, without its input."""
    return {"type": "tool_use", "id": new_call_id("toolu_"), "name": call.name, "input": {}}


def _messages(body: Fields) -> Iterator[Message]:
    if system := text_of(body, "system"):
        yield {"role": "system", "content": system}
    found = False
    for each in body.objects("messages"):
        for message in _messages_of(each):
            found = True
            yield message
    if not found:
        raise bad_request("messages is empty; give at least one message", "messages")


def _messages_of(message: Fields) -> Iterator[Message]:
    """A message of Anthropic's is several of a template's: tool results have turns of their own."""
    role = message.text("role")
    if role not in ("user", "assistant", "system"):
        place = message.place("role")
        raise bad_request(f"{place} is {role[:40]!r}; it must be user, assistant or system", place)
    content = message.raw("content")
    if content is None or isinstance(content, str):
        yield {"role": role, "content": content or ""}
        return
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Object] = []
    for block in message.objects("content"):
        match block.text("type"):
            case "text":
                texts.append(block.text("text"))
            case "document":
                texts.append(document_of(block))
            case "tool_use":
                given = block.child("input")
                arguments = given.values if given is not None else {}
                calls.append(call_of(block.text("name"), dict(arguments), block.text("id")))
            case "tool_result":
                yield {
                    "role": "tool",
                    "content": text_of(block),
                    "tool_call_id": block.text("tool_use_id"),
                }
            case "thinking":
                thoughts.append(block.text("thinking"))
            case kind if kind not in _DROPPED:
                place = block.place("type")
                raise bad_request(
                    f"{place} is {kind[:40]!r}: this model reads text only, no images or files",
                    place,
                )
    if texts or calls or role == "assistant":
        made: Message = {"role": role, "content": "\n".join(texts)}
        if thought := "".join(thoughts):
            made["reasoning_content"] = thought
        yield made | {"tool_calls": calls} if calls else made


def _ended(done: Done) -> Object:
    if done.finish_reason in ENDED_BY_LENGTH:
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if done.finish_reason is FinishReason.STOP:
        return {"stop_reason": "stop_sequence", "stop_sequence": done.stop}
    if isinstance(done, Ended) and done.called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def _usage_of(usage: Usage) -> Object:
    return _usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _usage(prompt: int, made: int, cached: int = 0) -> Object:
    """Anthropic's usage, whose input_tokens are those that were not read from the cache."""
    return {
        "input_tokens": prompt - cached,
        "output_tokens": made,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
    }


class _Stream:
    """Events of a message: blocks of reasoning, text and tool calls, one after the other."""

    content_type = EVENTS

    def __init__(self, head: Object, prompt_tokens: int) -> None:
        self._head = head
        self._prompt_tokens = prompt_tokens
        # The number and the type of the block that is open; "" between two.
        self._number = 0
        self._open = ""

    def begin(self) -> bytes:
        message = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(self._prompt_tokens, 0),
        }
        return _event("message_start", message=message) + self.heartbeat()

    def heartbeat(self) -> bytes:
        return _event("ping")

    def delta(self, index: int, delta: Part) -> bytes:
        if delta.call is not None:
            input = {"type": "input_json_delta", "partial_json": delta.call.arguments}
            opened = self._close() + self._begin("tool_use", _tool_use(delta.call))
            return opened + self._more(input) + self._close()
        if delta.reasoning:
            block: Object = {"type": "thinking", "thinking": "", "signature": ""}
            more = {"type": "thinking_delta", "thinking": delta.reasoning}
            return self._in_block("thinking", block) + self._more(more)
        if not delta.text:
            return b""
        block = {"type": "text", "text": ""}
        return self._in_block("text", block) + self._more(
            {"type": "text_delta", "text": delta.text}
        )

    def done(self, index: int, done: Done) -> bytes:
        ended = _event("message_delta", delta=_ended(done), usage=_usage_of(done.usage))
        return self._close() + ended

    def _in_block(self, kind: str, block: Object) -> bytes:
        """Opens a block of this type, unless one is open."""
        return b"" if self._open == kind else self._close() + self._begin(kind, block)

    def _begin(self, kind: str, block: Object) -> bytes:
        self._open = kind
        return _event("content_block_start", index=self._number, content_block=block)

    def _more(self, delta: Object) -> bytes:
        return _event("content_block_delta", index=self._number, delta=delta)

    def _close(self) -> bytes:
        """Closes the block that is open, if one is."""
        if not self._open:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._more({"type": "signature_delta", "signature": ""})
        closed = signed + _event("content_block_stop", index=self._number)
        self._open = ""
        self._number += 1
        return closed

    def end(self) -> bytes:
        return _event("message_stop")

    def failed(self, error: Mapping[str, Any]) -> bytes:
        return streams.event(error, "error")


def _event(kind: str, **fields: object) -> bytes:
    return streams.event({"type": kind, **fields}, kind)
