"""The output items of a response: reasoning, messages and calls, and the events that make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hearth.root.api.http.logprobs import ChatLogprobs
from hearth.root.api.http.tools import new_call_id
from hearth.root.api.spoken import Part

if TYPE_CHECKING:
    from hearth.root.api.http.streams import Collected
    from hearth.root.api.tools.events import ToolCall

Object = dict[str, Any]
# The type of an event and its fields.
Event = tuple[str, Object]


class Output:
    """Items in order. A message or a piece of reasoning is open until something else follows."""

    def __init__(self, id: str, logprobs: ChatLogprobs) -> None:
        """id: of the request; those of items are made from it."""
        self._id = id
        self._logprobs = logprobs
        # Of the tokens of the open message.
        self._scores: list[Object] = []
        # All items, those that have ended with their contents.
        self.items: list[Object] = []
        self._open = ""
        self._texts: list[str] = []

    def whole(self, answer: Collected) -> None:
        """The items of a whole answer."""
        calls = [Part("", (), call=call) for call in answer.calls]
        text = Part(answer.text, (), tuple(answer.scores))
        for part in (Part("", (), reasoning=answer.reasoning), text, *calls):
            for _ in self.part(part):
                pass
        long = answer.done is not None and answer.done.long
        for _ in self.end(long):
            pass

    def part(self, part: Part) -> Iterator[Event]:
        """The events of a part."""
        if part.reasoning:
            yield from self._in_item("reasoning")
            yield self._of_text("response.reasoning_summary_text.delta", delta=part.reasoning)
            self._texts.append(part.reasoning)
        elif part.call is not None:
            yield from self._close("completed")
            yield from self._call(part.call)
        elif part.text:
            yield from self._in_item("message")
            scores = self._logprobs.entries(part.scores)
            yield self._of_text("response.output_text.delta", delta=part.text, logprobs=scores)
            self._texts.append(part.text)
            self._scores += scores

    def end(self, long: bool) -> Iterator[Event]:
        """The events at the end; an answer without contents has an empty message."""
        if not self.items:
            yield from self._in_item("message")
        yield from self._close("incomplete" if long else "completed")

    def _in_item(self, kind: str) -> Iterator[Event]:
        """Opens an item of this type, unless one is open."""
        if self._open == kind:
            return
        yield from self._close("completed")
        self._open = kind
        self.items.append(self._item("in_progress"))
        yield self._added()
        if kind == "message":
            yield self._of_text("response.content_part.added", part=_content("", []))
        else:
            yield self._of_text("response.reasoning_summary_part.added", part=_summary(""))

    def _close(self, status: str) -> Iterator[Event]:
        """Ends the item that is open, if one is."""
        text = "".join(self._texts)
        if self._open == "message":
            scores, self._scores = self._scores, []
            content = _content(text, scores)
            self.items[-1] = {**self.items[-1], "status": status, "content": [content]}
            yield self._of_text("response.output_text.done", text=text, logprobs=scores)
            yield self._of_text("response.content_part.done", part=content)
        elif self._open == "reasoning":
            self.items[-1] = {**self.items[-1], "status": status, "summary": [_summary(text)]}
            yield self._of_text("response.reasoning_summary_text.done", text=text)
            yield self._of_text("response.reasoning_summary_part.done", part=_summary(text))
        if self._open:
            yield self._done()
        self._open = ""
        self._texts.clear()

    def _call(self, call: ToolCall) -> Iterator[Event]:
        item = {
            "id": new_call_id("fc_"),
            "type": "function_call",
            "status": "in_progress",
            "call_id": new_call_id("call_"),
            "name": call.name,
            "arguments": "",
        }
        self.items.append(item)
        yield self._added()
        where = {"item_id": item["id"], "output_index": len(self.items) - 1}
        kind = "response.function_call_arguments"
        yield f"{kind}.delta", {**where, "delta": call.arguments}
        yield f"{kind}.done", {**where, "name": call.name, "arguments": call.arguments}
        self.items[-1] = {**item, "status": "completed", "arguments": call.arguments}
        yield self._done()

    def _item(self, status: str) -> Object:
        """A new item of the type that is open."""
        number = len(self.items)
        if self._open == "reasoning":
            return {
                "id": f"rs_{self._id}{number}",
                "type": "reasoning",
                "status": status,
                "summary": [],
            }
        return {
            "id": f"msg_{self._id}{number}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [],
        }

    def _added(self) -> Event:
        return "response.output_item.added", self._last()

    def _done(self) -> Event:
        return "response.output_item.done", self._last()

    def _last(self) -> Object:
        return {"output_index": len(self.items) - 1, "item": self.items[-1]}

    def _of_text(self, kind: str, **fields: object) -> Event:
        """An event of the text in the item that is open."""
        part = "content_index" if self._open == "message" else "summary_index"
        number = len(self.items) - 1
        return kind, {"item_id": self.items[-1]["id"], "output_index": number, part: 0, **fields}


def _content(text: str, scores: Sequence[Object]) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}


def _summary(text: str) -> Object:
    return {"type": "summary_text", "text": text}
