"""The interface of a form of tool calls."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

from hearth.root.api.tools.events import ToolCall, Tools
from hearth.root.api.tools.source import Reading, Source
from hearth.root.engine.structure.grammar import Tag

Schema: TypeAlias = Mapping[str, Any]


class CallFormat(ABC):
    """A form of tool calls.

    triggers: texts with which a call may begin at any place. bare: characters with which one may
    begin where an answer, or another call, has just begun or ended. markers: all fixed texts of the
    form; control tokens among them are made visible. stops: texts after which the model waits for
    a result.
    """

    triggers: tuple[str, ...] = ()
    bare: str = ""
    markers: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()

    @abstractmethod
    def read(self, source: Source, tools: Tools) -> Reading[list[ToolCall] | None]:
        """Reads the calls that begin here; None where the text is not a call."""

    def tag(self, name: str, schema: Schema) -> Tag | None:
        """The part of an answer that is a call of this tool, to force it; None where it cannot be.

        schema: of the arguments.
        """
        return None

    @abstractmethod
    def written(self, name: str, arguments: str) -> str:
        """A call as text, for templates that do not write calls. arguments: a JSON object."""
