"""Conversations to prompts: a model's own Jinja chat template, run in a sandbox.

Templates come with models and are programs, so they get what Hugging Face gives them
(`raise_exception`, `strftime_now`, `tojson`, loop controls, `generation` blocks) and nothing else.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hearth.converter.errors import ModelError

_MAX_TEMPLATE = 1 << 20
_MAX_REPEAT = 1 << 20


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; its body is all we need."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares a set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also refuses the arithmetic that makes a short template fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise ModelError("the chat template uses '**', which no template needs")
        for sequence, count in ((left, right), (right, left)):
            is_repeat = isinstance(sequence, (str, list, tuple)) and isinstance(count, int)
            if is_repeat and len(sequence) * count > _MAX_REPEAT:
                raise ModelError(
                    f"the chat template repeats {len(sequence)} items {count} times; the limit "
                    f"is {_MAX_REPEAT} items"
                )
        return super().call_binop(context, operator, left, right)


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt of a conversation. Encode it with add_special=False: it holds BOS where needed.

    messages: {"role": ..., "content": ...} each. variables: further names a template may ask for.

    Raises:
        ModelError: the template is damaged, or refuses the conversation; the message says why.
    """
    try:
        return _compile(template).render(
            messages=messages,
            tools=tools,
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            **(variables or {}),
        )
    except ModelError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template has an error in line {error.lineno}: {error}"
        ) from error
    except (Exception, RecursionError) as error:
        raise ModelError(f"the chat template cannot render this conversation: {error}") from error


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    if len(template) > _MAX_TEMPLATE:
        raise ModelError(
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
    # Jinja's own escapes <, > and & for HTML; a prompt must have them as they are.
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
