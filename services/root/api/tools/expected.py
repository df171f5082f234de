"""The answers that a conversation may get: their form, and the parser of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.api.tools.discovery import facts_of
from hearth.root.api.tools.events import Tools
from hearth.root.api.tools.parser import AnswerParser, Form
from hearth.root.api.tools.reasoning import is_open
from hearth.root.engine.params import invalid
from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.root.engine.structure.grammar import Tag, tagged

# Tokens at the end of a prompt among which the text that opens the reasoning is.
_TAIL = 32
# Calls of one answer that are forced to be calls: a small model may never stop by itself.
MAX_FORCED_CALLS = 8


@dataclass(frozen=True, slots=True)
class Expected:
    """The answers to one prompt. visible: control tokens that the parser must see."""

    form: Form
    tools: Tools
    opened: bool = False
    visible: frozenset[int] = frozenset()
    control_ids: Mapping[str, int] = field(default_factory=dict)

    @property
    def after(self) -> str:
        """The text up to which an answer is free: the end of reasoning that the prompt opens."""
        return self.form.reasoning.close if self.opened and self.form.reasoning else ""

    def forcing(self, names: Sequence[str], one_call: bool) -> Constraint:
        """The constraint that makes an answer one or several calls of these tools.

        Raises HearthError INVALID_ARGUMENT for a tool whose calls cannot be forced in their form.
        """
        most = 1 if one_call else MAX_FORCED_CALLS
        tags = self._tags(names)
        if len(tags) < len(names):
            raise invalid(
                f"tool_choice cannot be kept: calls of {names[len(tags)]!r} cannot be forced in "
                "the form in which this model writes calls; leave the choice to the model",
                field="tool_choice",
            )
        text = tagged(tags, self.control_ids, free=False, least=1, most=most)
        return Constraint(Kind.GRAMMAR, text, self.after, field="tools")

    def checking(self) -> Constraint | None:
        """The constraint under which calls have the arguments that their schemas describe.

        None where one of the tools has arguments that the form of calls cannot keep to a schema.
        """
        tags = self._tags([*self.tools])
        if len(tags) < len(self.tools):
            return None
        text = tagged(tags, self.control_ids)
        return Constraint(Kind.GRAMMAR, text, self.after, field="tools")

    def _tags(self, names: Sequence[str]) -> list[Tag]:
        """The tools' calls, up to the first tool that has none."""
        tags: list[Tag] = []
        for name in names:
            try:
                tag = self.form.tag(name, _closed(self.tools[name]))
            except RecursionError:
                problem = f"the arguments of tool {name!r} are nested too deeply"
                raise invalid(problem, field="tools") from None
            if tag is None:
                break
            tags.append(tag)
        return tags

    def parser(self) -> AnswerParser:
        """The parser of one answer."""
        return AnswerParser(self.form, self.tools, opened=self.opened)


def _closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema of arguments: an object, without others than those named."""
    closed = {"type": "object", **schema}
    if "properties" in closed or not schema.keys() - {"type", "description"}:
        closed = {"properties": {}, "additionalProperties": False, **closed}
    return closed


def expected_of(
    tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None, ids: Sequence[int]
) -> Expected | None:
    """The form of the answers to a prompt; None where all of them is text. Takes time once."""
    facts = facts_of(tokenizer, bool(tools))
    form = facts.form
    if tools and form.calls is None and not form.channels:
        form = replace(form, calls=facts.calls)
    if not tools:
        form = replace(form, calls=None)
    if form.plain:
        return None
    names = [tool["function"]["name"] for tool in tools or ()]
    schemas = [tool["function"].get("parameters") or {} for tool in tools or ()]
    # One text: a vocabulary may have a thousand control tokens.
    markers = "\n".join(form.markers)
    visible = {id for name, id in tokenizer.control_ids.items() if name and name in markers}
    opened = False
    if form.reasoning is not None:
        stream = tokenizer.stream(visible=visible)
        tail = "".join([*map(stream.push, ids[-_TAIL:]), stream.flush()])
        opened = is_open(form.reasoning, tail)
    named = dict(zip(names, schemas, strict=True))
    return Expected(form, named, opened, frozenset(visible), tokenizer.control_ids)
