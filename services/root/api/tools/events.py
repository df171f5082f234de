"""The parts of a model's answer: reasoning, text, tool calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

# The parameters of each tool in JSON schema, by the tool's name.
Tools: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call. arguments: the text of a JSON object."""

    name: str
    arguments: str


Event: TypeAlias = Text | Reasoning | ToolCall
