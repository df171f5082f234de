"""Conversations to token pieces: the template's control tokens by id, everything else as text.

    messages -> templates.render (sandboxed) -> text -> pieces -> Tokenizer.encode_pieces

What a message says cannot become a control token. In the strings of messages and tools, each
character with which such a token's name begins is replaced by a stand-in that occurs nowhere else.
So the names in the rendered text were written by the template. Then the stand-ins are put back.
Words that the template itself looks for, as "</think>", stay as they are.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from hearth.converter.chat import Renderer, render
from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer, any_of

Messages: TypeAlias = Sequence[Mapping[str, Any]]

# Noncharacters, which no text should contain, then private characters.
_STAND_INS = (*range(0xFDD0, 0xFDF0), *range(0x100000, 0x10FFFE))
# Templates compare these with fixed words, and write them inside control tokens: "<|user|>".
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
_SYSTEM_ROLES = frozenset({"system", "developer"})
_PROBE = "hearth system probe"


def conversation_pieces(
    tokenizer: Tokenizer,
    messages: Messages,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    variables: Mapping[str, Any] | None = None,
    limit: int | None = None,
    turn: bool = True,
    renderer: Renderer | None = None,
) -> str | list[str | int]:
    """The prompt of a conversation, up to the assistant's turn.

    A text for `Tokenizer.encode` where the template wrote every control token's name in it, as
    always if no message holds one; else pieces for `Tokenizer.encode_pieces`. System messages that
    the template refuses or leaves out are merged into the user message after them. variables:
    further names for the template, with values from outside. limit: the most bytes that the
    template may make. turn: false leaves the beginning of the assistant's turn out.

    Raises:
        ModelError: no chat template, or it refuses the conversation; the message says why.
    """
    template = tokenizer.template_for(tools is not None)
    if template is None:
        raise ModelError("this model has no chat template")
    run = _Run(template, tokenizer.special_tokens, variables or {}, limit, turn, renderer)
    messages = _accepted(messages, tools, run)
    return _pieces(template, tokenizer.control_ids, messages, tools, run)


class _Run:
    """Runs of one template."""

    def __init__(
        self,
        template: str,
        special_tokens: Mapping[str, str | list[str]],
        variables: Mapping[str, Any],
        limit: int | None,
        turn: bool,
        renderer: Renderer | None,
    ) -> None:
        self._template = template
        self._special_tokens = special_tokens
        self.variables = variables
        self._limit = limit
        self._turn = turn
        self._renderer = renderer
        self._last: tuple[Messages, str] | None = None

    def __call__(self, messages: Messages, tools: Any, variables: Any = None) -> str:
        """The text of a conversation. Raises ModelError where the template refuses it."""
        if self._last is None or self._last[0] is not messages:
            text = render(
                self._template,
                messages,
                bos_token=None,
                eos_token=None,
                add_generation_prompt=self._turn,
                tools=tools,
                variables={**(variables or self.variables), **self._special_tokens},
                limit=self._limit,
                renderer=self._renderer,
            )
            self._last = messages, text
        return self._last[1]


def _accepted(messages: Messages, tools: Any, run: _Run) -> Messages:
    """The messages, or another form of them whose system messages the template accepts.

    Raises ModelError where the template leaves out a message of a role that no template must know.
    """
    strange: dict[Any, int] = {}  # the first message of each role that says something
    for place, message in enumerate(messages):
        if message.get("role") not in _ROLES and message.get("content"):
            strange.setdefault(message.get("role"), place)
    lost = _left_out(messages, tools, run, [*strange.values()])
    if lost is not None:
        role = repr(str(lost.get("role"))[:40])
        raise ModelError(
            f"the chat template leaves out messages of this role, {role}: use system, user or "
            "assistant"
        )
    if not any(message.get("role") in _SYSTEM_ROLES for message in messages):
        return messages
    refusal: ModelError | None = None
    for form in (lambda m: m, _developer_as_system, _system_in_user):
        changed = form(messages)
        if refusal is not None and changed == messages:
            continue
        try:
            run(changed, tools)  # it may refuse messages without content too
            places = [n for n, each in enumerate(changed) if each.get("role") in _SYSTEM_ROLES]
            if _left_out(changed, tools, run, places) is None:
                return changed
        except ModelError as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal
    return messages


def _left_out(
    messages: Messages, tools: Any, run: _Run, places: Sequence[int]
) -> Mapping[str, Any] | None:
    """The first of the messages at `places` whose content has no effect on the prompt.

    Raises ModelError where the template refuses the conversation.
    """
    places = [place for place in places if messages[place].get("content")]
    text = run(messages, tools) if places else ""
    for place in places:
        message = messages[place]
        content = message["content"]
        if isinstance(content, str) and content.strip() and content.strip() in text:
            continue
        other: str | list[Any] = _PROBE
        if not isinstance(content, str):
            other = [{"type": "text", "text": _PROBE}]
        probed = [*messages]
        probed[place] = {**message, "content": other}
        if run(probed, tools) == text:
            return message
    return None


def _developer_as_system(messages: Messages) -> Messages:
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else message
        for message in messages
    ]


def _system_in_user(messages: Messages) -> Messages:
    """Each system message merged into the next user message; the last ones into the one before."""
    merged: list[Mapping[str, Any]] = []
    waiting: list[Any] = []
    for message in messages:
        if message.get("role") in _SYSTEM_ROLES:
            waiting.append(message.get("content"))
        elif message.get("role") == "user" and waiting:
            merged.append({**message, "content": _joined([*waiting, message.get("content")])})
            waiting = []
        else:
            merged.append(message)
    if waiting and merged and merged[-1].get("role") == "user":
        last = merged.pop()
        merged.append({**last, "content": _joined([last.get("content"), *waiting])})
    elif waiting:
        merged.append({"role": "user", "content": _joined(waiting)})
    return merged


def _joined(contents: Sequence[Any]) -> Any:
    """Contents after one another: a text if all are, else a list of parts."""
    contents = [content for content in contents if content]
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    parts: list[Any] = []
    for content in contents:
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return parts


def _pieces(
    template: str,
    control_ids: Mapping[str, int],
    messages: Messages,
    tools: Any,
    run: _Run,
) -> str | list[str | int]:
    """Run the template with marked strings, and cut its text at the template's control tokens."""
    plain = run(messages, tools)
    pattern = any_of(control_ids)
    if pattern is None:
        return plain
    marks = _Marks(control_ids, template, [messages, tools, run.variables])
    if not marks.needed:
        return plain
    text = None
    with suppress(ModelError):  # the template may need the characters that are replaced
        text = run(*map(marks.applied, (messages, tools, run.variables)))
    if text is None or marks.removed(text) != plain:
        marks.whole_names = True
        text = run(*map(marks.applied, (messages, tools, run.variables)))
    pieces: list[str | int] = []
    place = 0
    for match in pattern.finditer(text):
        pieces += [marks.removed(text[place : match.start()]), control_ids[match[0]]]
        place = match.end()
    pieces.append(marks.removed(text[place:]))
    if not any(isinstance(piece, str) and pattern.search(piece) for piece in pieces):
        return marks.removed(text)  # no message holds a name
    return [piece for piece in pieces if piece != ""]


class _Marks:
    """Stand-ins for the characters with which names of control tokens begin."""

    def __init__(self, names: Collection[str], template: str, strings: Any) -> None:
        """strings: messages and tools, whose strings may contain names."""
        # True: only whole names are broken up, for templates that look for their characters.
        self.whole_names = False
        self._names = _any_case(names)
        self._prefixes = {name[:end] for name in names for end in range(1, len(name))}
        self._longest = max(map(len, self._prefixes), default=0)
        self._template = template
        texts = [*_strings(strings)]
        begins = {name[0] for name in names}
        begins |= {begin.swapcase() for begin in begins if begin.isascii()}
        roles = {text for text in texts if self._is_made_up(text)} & {*_roles(strings)}
        self.needed = bool(roles) or any(begin in text for text in texts for begin in begins)
        if not self.needed:
            return
        used = set().union(template, *texts, *names)
        free = (chr(code) for code in _STAND_INS if chr(code) not in used)
        self._roles = roles
        self._stand_ins: dict[str, str] = {}
        for begin in sorted(begins | {role[0] for role in roles}):
            stand_in = next(free, None)
            if stand_in is None:
                raise ModelError("the conversation holds every private character of Unicode")
            self._stand_ins[begin] = stand_in
        self._kept = any_of(
            word
            for word in _words(template)
            if not self._names.search(word) and word not in self._prefixes
        )
        self._begins = str.maketrans({begin: self._stand_ins[begin] for begin in begins})
        self._back = {}
        for begin, stand_in in self._stand_ins.items():
            self._back[stand_in] = begin
            # As `tojson` writes it with ensure_ascii.
            pairs = stand_in.encode("utf-16-be").hex()
            self._back["".join(f"\\u{pairs[i : i + 4]}" for i in range(0, len(pairs), 4))] = begin
        self._found = re.compile("|".join(map(re.escape, self._back)))

    def _is_made_up(self, role: str) -> bool:
        """Test whether a role is neither a usual one nor one that the template compares with."""
        quoted = (f"'{role}'" in self._template, f'"{role}"' in self._template)
        return bool(role) and role not in _ROLES and not any(quoted)

    def applied(self, value: Any) -> Any:
        """A copy with stand-ins in every string and key."""
        if isinstance(value, str):
            return self._mark(value)
        if isinstance(value, Mapping):
            marked = {self.applied(key): self.applied(item) for key, item in value.items()}
            role = value.get("role")
            if isinstance(role, str) and role in self._roles:
                marked["role"] = self._stand_ins[role[0]] + self._mark(role[1:])
            return marked
        return [self.applied(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _mark(self, text: str) -> str:
        if not self.whole_names:
            parts: list[str] = []
            place = 0
            for match in self._kept.finditer(text) if self._kept else ():
                parts += [text[place : match.start()].translate(self._begins), match[0]]
                place = match.end()
            text = "".join([*parts, text[place:].translate(self._begins)])
        while self._names.search(text):  # breaking one up may leave another
            text = self._names.sub(lambda match: self._stand_ins[match[0][0]] + match[0][1:], text)
        # What follows in the prompt could complete a name.
        for place in range(max(0, len(text) - self._longest), len(text)):
            if text[place:] in self._prefixes:
                text = text[:place] + self._stand_ins[text[place]] + text[place + 1 :]
        return text

    def removed(self, text: str) -> str:
        """The text with the original characters for the stand-ins."""
        return self._found.sub(lambda match: self._back[match[0]], text)


def _words(template: str) -> set[str]:
    """The texts between quotes in a template's statements and expressions."""
    found: set[str] = set()
    for block in re.findall(r"\{[{%](.*?)[%}]\}", template, re.DOTALL):
        for pair in re.findall(r"'((?:[^'\\]|\\.)+)'|\"((?:[^\"\\]|\\.)+)\"", block):
            found.add("".join(pair).replace("\\n", "\n"))
    return found


def _any_case(names: Iterable[str]) -> re.Pattern[str]:
    """Names in upper and lower case too, since templates may change the case of a text."""
    found = any_of(names)
    assert found is not None
    return re.compile(found.pattern, re.IGNORECASE | re.ASCII)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _roles(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(role := value.get("role"), str):
            yield role
        for item in value.values():
            yield from _roles(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _roles(item)
