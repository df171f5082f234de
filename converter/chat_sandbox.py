"""Chat templates in a process of their own, with limited memory and time.

Started by chat.py, by path: it imports nothing of Hearth. Its argument is the time limit of a
template in seconds. Reads requests and writes answers, each a JSON object after its length. Ends
when standard input ends, and by a signal when a template takes too long. Jinja's sandbox keeps a
template away from the program around it, but does not limit memory or time: the process does.
"""

import datetime
import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Includes the interpreter: a template has some 400 MiB.
MEMORY_BYTES = 512 << 20
SECONDS = 5.0
_MAX_TEMPLATE = 1 << 20
# Bytes, where the request has no limit of its own; no context is longer.
_MAX_TEXT = 16 << 20
_MAX_REPEAT = 1 << 20
_LENGTH_BYTES = 8


class TemplateRefusal(Exception):  # noqa: N818 (an answer to the caller, not a fault of this program)
    """Reason why a template made no text."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text, for training; only its body is needed."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares a set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, without the arithmetic by which a short template could fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # Some templates collect messages so. The lists are copies, and the process is limited.
        appends = attr == "append" and isinstance(obj, list)
        return appends or super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateRefusal("the chat template uses '**', which chat templates do not need")
        for sequence, count in ((left, right), (right, left)):
            is_repeat = isinstance(sequence, (str, list, tuple)) and isinstance(count, int)
            if is_repeat and len(sequence) * count > _MAX_REPEAT:
                raise TemplateRefusal(
                    f"the chat template repeats {len(sequence)} items {count} times; the limit "
                    f"is {_MAX_REPEAT} items"
                )
        return super().call_binop(context, operator, left, right)


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    limit: int = _MAX_TEXT,
) -> str:
    """Render the template; limit: the most bytes of the text. Raises TemplateRefusal."""
    try:
        text = _compile(template).render(messages=messages, tools=tools, **variables)
    except TemplateRefusal:
        raise
    except jinja2.TemplateSyntaxError as error:
        problem = f"the chat template has an error in line {error.lineno}: {error}"
        raise TemplateRefusal(problem) from None
    except MemoryError:
        problem = f"the chat template needs more than {MEMORY_BYTES >> 20} MiB of memory"
        raise TemplateRefusal(problem) from None
    except (Exception, RecursionError) as error:
        problem = f"the chat template cannot render this conversation: {str(error)[:500]}"
        raise TemplateRefusal(problem) from None
    size = len(text) if len(text) > limit else len(text.encode(errors="surrogatepass"))
    if size > limit:
        raise TemplateRefusal(
            f"the chat template makes {size} bytes of this conversation; the limit is {limit}"
        )
    return text


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    if len(template) > _MAX_TEMPLATE:
        raise TemplateRefusal(
            f"the chat template has {len(template)} characters; at most {_MAX_TEMPLATE}"
        )
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML; a prompt needs them unchanged.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)


def write_frame(stream: IO[bytes], value: Any) -> None:
    """Write one JSON value after its length."""
    data = json.dumps(value).encode()
    stream.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
    stream.flush()


def read_frame(stream: IO[bytes], limit: int = MEMORY_BYTES) -> Any:
    """Read what write_frame wrote.

    Raises EOFError when the other end is closed, or sends more than `limit` bytes.
    """
    head = stream.read(_LENGTH_BYTES)
    if int.from_bytes(head, "little") > limit:
        raise EOFError
    data = stream.read(int.from_bytes(head, "little")) if len(head) == _LENGTH_BYTES else b""
    if not data or len(data) < int.from_bytes(head, "little"):
        raise EOFError
    return json.loads(data)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        text = render(
            request["template"],
            request["messages"],
            request["tools"],
            request["variables"],
            request.get("limit") or _MAX_TEXT,
        )
        return {"text": text}
    except TemplateRefusal as refusal:
        return {"refusal": str(refusal)}


def _limit_memory() -> None:
    """Limit memory and core files where the system can."""
    with suppress(ImportError, AttributeError, OSError, ValueError):
        resource: Any = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_after(seconds: float) -> None:
    """Without timers, chat.py ends this process."""
    with suppress(AttributeError):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> None:
    """Answer requests until standard input ends."""
    seconds = float(sys.argv[1])
    _limit_memory()
    # A descriptor for answers alone: nothing else writes to it.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = read_frame(sys.stdin.buffer)
        except EOFError:
            return
        # The default action ends the process at any point.
        _end_after(seconds)
        write_frame(answers, _answer(request))
        _end_after(0.0)


if __name__ == "__main__":
    main()
