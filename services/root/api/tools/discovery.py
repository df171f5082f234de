"""The form of a model's calls and reasoning, found from its chat template.

The template renders an answer with a call of known name and arguments, and one with two such calls.
The texts around name and arguments, and what both have in common, are the form. Families whose
templates do not write calls, or not in JSON or tags, are in `exceptions`.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hearth.converter.chat import RendererError, render
from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.api.tools.events import ToolCall
from hearth.root.api.tools.formats.base import CallFormat
from hearth.root.api.tools.formats.exceptions import exception_of
from hearth.root.api.tools.formats.json_calls import PLAIN, JsonCalls
from hearth.root.api.tools.formats.named import ID, NamedCalls
from hearth.root.api.tools.formats.tagged import TaggedCalls
from hearth.root.api.tools.parser import AnswerParser, Form
from hearth.root.api.tools.reasoning import Marks, marks_in
from hearth.root.api.tools.values import object_of

Object = dict[str, Any]

# Names and values that no template holds, and ids as Mistral's templates want them.
_NAME, _OTHER_NAME = "hearth_probe", "hearth_other"
_KEY, _OTHER_KEY = "probe_key", "other_key"
_VALUE, _NUMBER = "probe value", 3407
_ID, _OTHER_ID = "hearthId1", "hearthId2"
_LONG_ID = "call_0123456789abcdef"
_ANSWER = "hearth probe answer"
_FIRST_TAG = re.compile(r"\s*(<[^<>]*>|\[[^\[\]]*\]|```)")
_USER: Object = {"role": "user", "content": "hearth probe question"}


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """The abilities of a chat template, and the form of the model's answers.

    reads_tools: it describes tools to the model. writes_calls: it writes calls of earlier answers.
    reads_results: it writes messages of role tool. text_arguments: it wants arguments as a text of
    JSON. null_content: it writes calls only where the content is null. short_ids: it refuses ids
    of calls that do not have 9 letters and digits. one_call: it refuses several calls in a message.
    """

    form: Form
    reads_tools: bool = False
    writes_calls: bool = False
    reads_results: bool = False
    text_arguments: bool = False
    null_content: bool = False
    short_ids: bool = False
    one_call: bool = False

    @property
    def calls(self) -> CallFormat:
        """The form of calls; for a template without tools, the one in its description."""
        return self.form.calls or PLAIN


def facts_of(tokenizer: Tokenizer, tools: bool) -> TemplateFacts:
    """The facts of the template for conversations with or without tools. Takes some 50 ms once."""
    template = tokenizer.template_for(tools)
    if template is None:
        return TemplateFacts(Form())
    return _facts(template, json.dumps(dict(tokenizer.special_tokens), sort_keys=True))


@functools.lru_cache(maxsize=64)
def _facts(template: str, special_tokens: str) -> TemplateFacts:
    return _Probe(template, json.loads(special_tokens)).facts()


class _Probe:
    """Runs of one template."""

    def __init__(self, template: str, special_tokens: Mapping[str, Any]) -> None:
        self._template = template
        self._variables = special_tokens
        parameters = {
            "type": "object",
            "properties": {
                _KEY: {"type": "string", "description": _KEY},
                _OTHER_KEY: {"type": "integer", "description": _OTHER_KEY},
            },
            "required": [_KEY],
        }
        function = {"name": _NAME, "description": _NAME, "parameters": parameters}
        self._tools = [{"type": "function", "function": function}]

    def _run(self, messages: Sequence[Object], prompt: bool = False) -> str:
        """The text of a conversation; "" where the template refuses it."""
        try:
            return render(
                self._template,
                messages,
                bos_token=None,
                eos_token=None,
                add_generation_prompt=prompt,
                tools=self._tools,
                variables=self._variables,
            )
        except RendererError:
            raise  # not the template's answer, and so not one to be kept
        except ModelError:
            return ""

    def facts(self) -> TemplateFacts:
        """All facts."""
        reasoning = marks_in(self._template)
        begun = self._run([_USER], prompt=True)
        exception = exception_of(self._template)
        channels = "<|channel|>" in self._template and "<|message|>" in self._template
        one, text_arguments, null_content = self._first_that_writes()
        found = bool(one)
        shape = functools.partial(_call, text=text_arguments)
        said = functools.partial(_assistant, null=null_content)
        two = self._run([_USER, said(shape(), shape(other=True))]) if found else ""
        long_id = self._run([_USER, said(shape(id=_LONG_ID))]) if found else ""
        result = {"role": "tool", "content": _ANSWER, "name": _NAME, "tool_call_id": _ID}
        asked = said(shape()) if found else {"role": "assistant", "content": _VALUE}
        calls = exception
        if found and exception is None and not channels:
            header, ending = self._around(begun)
            regions = [_region(header, text, ending) for text in (one, two)]
            calls = _classified(*(_without_empty(region, reasoning) for region in regions))
        return TemplateFacts(
            Form(None if channels else calls, None if channels else reasoning, channels),
            reads_tools=_NAME in begun,
            writes_calls=found,
            reads_results=_ANSWER in self._run([_USER, asked, result], prompt=True),
            text_arguments=text_arguments,
            null_content=null_content,
            short_ids=found and not long_id,
            one_call=found and _OTHER_NAME not in two,
        )

    def _first_that_writes(self) -> tuple[str, bool, bool]:
        """A conversation with a call; True if its arguments are a text; True if content is null."""
        plain = self._run([_USER, {"role": "assistant", "content": ""}])
        for text, null in ((False, False), (False, True), (True, False), (True, True)):
            made = self._run([_USER, _assistant(_call(text=text), null=null)])
            # The description of the tool holds its name and keys too, but no values.
            if made.count(_NAME) > plain.count(_NAME) and _VALUE in made:
                return made, text, null
        return "", False, False

    def _around(self, begun: str) -> tuple[str, str]:
        """The texts before and after an answer."""
        made = self._run([_USER, {"role": "assistant", "content": _ANSWER}])
        place = made.find(_ANSWER)
        return (made[:place], made[place + len(_ANSWER) :]) if place >= 0 else (begun, "")


def _call(text: bool = False, other: bool = False, id: str = "") -> Object:
    arguments = {_KEY: _VALUE, _OTHER_KEY: _NUMBER}
    function = {
        "name": _OTHER_NAME if other else _NAME,
        "arguments": json.dumps(arguments) if text else arguments,
    }
    id = id or (_OTHER_ID if other else _ID)
    return {"id": id, "type": "function", "function": function}


def _assistant(*calls: Object, null: bool = False) -> Object:
    return {"role": "assistant", "content": None if null else "", "tool_calls": [*calls]}


def _region(header: str, text: str, ending: str) -> str:
    """The text between header and ending, with markers whole that only begin alike."""
    end = len(_common_start(header, text))
    for opening, closing in (("<", ">"), ("[", "]")):
        begin = text.rfind(opening, 0, end)
        if begin >= 0 and closing not in text[begin:end]:
            end = min(end, begin)
    return text[end:].removesuffix(ending)


def _without_empty(region: str, marks: Marks | None) -> str:
    """A region without reasoning that is empty."""
    if marks is None:
        return region
    return re.sub(rf"{re.escape(marks.open)}\s*{re.escape(marks.close)}\s*", "", region)


def _classified(one: str, two: str) -> CallFormat | None:
    """The form of the calls in two regions: with one call, and with two ("" if refused)."""
    for kind in (_json_calls, _named_calls, _tagged_calls):
        found = kind(one, two)
        if found is not None and _reads(found, one):
            return found
    return None


def _reads(form: CallFormat, region: str) -> bool:
    """Test whether a form reads the call from which it was found."""
    schema = {"properties": {_KEY: {"type": "string"}, _OTHER_KEY: {"type": "integer"}}}
    parser = AnswerParser(Form(form), {_NAME: schema})
    calls = [event for event in parser.feed(region) + parser.end() if isinstance(event, ToolCall)]
    if len(calls) != 1 or calls[0].name != _NAME:
        return False
    return object_of(calls[0].arguments) == {_KEY: _VALUE, _OTHER_KEY: _NUMBER}


def _json_calls(one: str, two: str) -> CallFormat | None:
    span = _json_span(one, 0, lambda text: _NAME in text and _VALUE in text)
    if span is None or span[0] > one.find(_NAME):
        return None
    value = json.loads(one[span[0] : span[1]])
    listed = isinstance(value, list)
    first = value[0] if listed and value else value
    keys = [*first] if isinstance(first, dict) else []
    by_name = keys == [_NAME]
    name_key = next((key for key in keys if first[key] == _NAME), "name")
    arguments_key = next((key for key in keys if _VALUE in str(first[key])), "arguments")
    others = _json_span(two, 0, lambda text: _OTHER_NAME in text)
    end = _json_span(two, 0, lambda text: _NAME in text)
    between = None
    if others is not None and end is not None and others[0] >= end[1]:
        between = two[end[1] : others[0]]
    parts = _split(one[: span[0]], between, one[span[1] :])
    return JsonCalls(
        parts.open.strip(),
        parts.close.strip(),
        parts.section_open.strip(),
        parts.section_close.strip(),
        listed=listed,
        name_key=name_key,
        arguments_key=arguments_key,
        by_name=by_name,
        gap=_space_at_end(parts.open or parts.section_open),
    )


def _named_calls(one: str, two: str) -> CallFormat | None:
    name = one.find(_NAME)
    span = _json_span(one, name + len(_NAME), lambda text: _VALUE in text)
    if span is None:
        return None
    end = _json_span(two, two.find(_NAME) + len(_NAME), lambda text: _VALUE in text)
    other = two.find(_OTHER_NAME, end[1]) if end else -1
    between = two[end[1] : other] if end and other >= 0 else None
    parts = _split(one[:name], between, one[span[1] :])
    if not parts.open.strip() and not parts.section_open.strip():
        return None
    return NamedCalls(
        _with_id(parts.open.strip()),
        _with_id(one[name + len(_NAME) : span[0]]).strip(" "),
        parts.close.strip(),
        _with_id(parts.section_open.strip()),
        parts.section_close.strip(),
    )


def _tagged_calls(one: str, two: str) -> CallFormat | None:
    texts = (_NAME, _KEY, _VALUE, _OTHER_KEY, str(_NUMBER))
    places: list[int] = []
    for text in texts:
        places.append(one.find(text, places[-1] if places else 0))
        if places[-1] < 0:
            return None
    gaps = [
        one[place + len(text) : after]
        for text, place, after in zip(texts, places, [*places[1:], len(one)], strict=True)
    ]
    named, key_close, next_key, other_close, after = gaps
    key_open = _tag_start(_common_end(named, next_key))
    value_close = _tag_end(_common_start(next_key, after))
    if not key_open.strip() or not value_close.strip() or not key_close.strip():
        return None
    last = two.find(str(_NUMBER))
    other = two.find(_OTHER_NAME, last)
    between = two[last + len(str(_NUMBER)) + len(value_close) : other] if other >= 0 else None
    parts = _split(one[: places[0]], between, after[len(value_close) :])
    if not parts.open.strip() and not parts.section_open.strip():
        return None
    return TaggedCalls(
        parts.open.strip(),
        named[: len(named) - len(key_open)].strip(),
        key_open.strip(),
        key_close.strip(" "),
        value_close.strip(" "),
        parts.close.strip(),
        parts.section_open.strip(),
        parts.section_close.strip(),
        other_close.strip(" ") if other_close != key_close else "",
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    section_open: str
    open: str
    close: str
    section_close: str


def _split(before: str, between: str | None, after: str) -> _Parts:
    """The texts around calls. between: of two calls; None where there is only one of them."""
    if between is None:
        found = _FIRST_TAG.match(after)
        return _Parts("", before, found[0] if found else "", "")
    opening = _tag_start(_common_end(before, between))
    closing = _tag_end(_common_start(after, between))
    rest = before[: len(before) - len(opening)]
    if not rest.strip():
        return _Parts("", before, closing, "")
    found = _FIRST_TAG.match(after, len(closing))
    return _Parts(rest, opening, closing, found[0] if found else "")


def _common_start(first: str, second: str) -> str:
    pairs = zip(first, second, strict=False)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(letter for letter, _ in alike)


def _common_end(first: str, second: str) -> str:
    return _common_start(first[::-1], second[::-1])[::-1]


def _tag_start(text: str) -> str:
    """A text from its first whole tag on."""
    found = re.search(r"[<\[\]>]", text)
    if found is None or found[0] in "<[":
        return text
    begin = re.search(r"[<\[]", text)
    return text[begin.start() :] if begin else ""


def _tag_end(text: str) -> str:
    """A text up to its last whole tag."""
    places = [text.rfind(letter) for letter in "<["]
    ends = [text.rfind(letter) for letter in ">]"]
    return text if max(places) <= max(ends) else text[: max(places)]


def _json_span(text: str, at: int, holds: Callable[[str], bool]) -> tuple[int, int] | None:
    """The first JSON object or list at or after a place whose text fulfils a condition."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"[{\[]", text):
        if found.start() < at:
            continue
        try:
            _, end = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        if holds(text[found.start() : end]):
            return found.start(), end
    return None


def _space_at_end(text: str) -> str:
    return text[len(text.rstrip()) :]


def _with_id(text: str) -> str:
    return text.replace(_ID, ID)
