"""A request's wishes about tools and reasoning, and what they make of its sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hearth.root.engine.params import MAX_STOPS, Sampling

if TYPE_CHECKING:
    from hearth.root.api.tools.expected import Expected

Object = dict[str, Any]

MAX_TOOLS = 512


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request. given: as templates take them; none where none may be called.

    one_call: at most one call is wanted. forced: the answer must call one of these. strict:
    arguments must have the form that their schemas describe.
    """

    given: Sequence[Object] = field(default_factory=list)
    one_call: bool = False
    forced: tuple[str, ...] = ()
    strict: bool = False


def function(name: str, description: str, parameters: Mapping[str, Any]) -> Object:
    """A tool as templates take it. parameters: JSON Schema; empty for no arguments."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": dict(parameters) or {"type": "object", "properties": {}},
        },
    }


def constrained(sampling: Sampling, tools: Tools, expected: Expected | None) -> Sampling:
    """The sampling with the constraint that tools need. Takes time for many tools.

    A wish that the form of the model's calls cannot keep is an error where calls are forced. Where
    the model has the choice its answers are free, as other servers have it. Raises HearthError.
    """
    if expected is None:
        return sampling
    found = sampling.constraint
    if tools.forced:
        found = expected.forcing(tools.forced, tools.one_call)
    elif found is None and tools.strict:
        found = expected.checking()
    elif found is not None and not found.after:
        found = replace(found, after=expected.after)
    return sampling if found is sampling.constraint else replace(sampling, constraint=found)


def stops_of(stop: tuple[str, ...], expected: Expected | None) -> tuple[str, ...]:
    """The request's stop texts, and those after which the model waits for a tool's result."""
    own = expected.form.stops if expected is not None else ()
    found = (*stop, *own)
    return found if len(found) <= MAX_STOPS else stop


def thinking(wish: bool | str) -> Object:
    """Names by which templates switch reasoning; wish: on, off, or an effort."""
    if isinstance(wish, str) and wish in _KNOWN_EFFORTS:
        return {**thinking(True), "reasoning_effort": _KNOWN_EFFORTS[wish]}
    on = wish not in (False, "none", "")
    return {"enable_thinking": on, "thinking": on}


# OpenAI's efforts -> those that templates know.
_KNOWN_EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
EFFORTS = ("none", *_KNOWN_EFFORTS)
