"""Constraints of an answer's text, as data. Nothing here loads llguidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hearth.common.errors import HearthError, Reason

MAX_BYTES = 256 << 10


class Kind(StrEnum):
    """The language in which a constraint is written."""

    # Any JSON object; the text is empty.
    JSON_OBJECT = "json_object"
    # A document that a JSON Schema accepts; the text is the schema, as JSON.
    JSON_SCHEMA = "json_schema"
    # A regular expression that the whole answer matches, as Rust's crate `regex` writes them.
    REGEX = "regex"
    # A grammar: llama.cpp's GBNF, or llguidance's form of Lark. Lark has a rule `start`.
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """The language of an answer: every token keeps it possible, and only a member may end.

    after: free text up to and with this text or control token comes before ("</think>"); ""
    constrains the answer from its first token. field: the request's name for the constraint, for
    errors. Raises HearthError INVALID_ARGUMENT for a text that is too long, or not UTF-8.
    """

    kind: Kind
    text: str = ""
    after: str = ""
    field: str = field(default="constraint", compare=False)

    def __post_init__(self) -> None:
        try:
            size = len(self.text.encode()) + len(self.after.encode())
        except UnicodeEncodeError as error:
            raise self.refused(f"it is not valid UTF-8: {error.reason}") from None
        if size > MAX_BYTES:
            raise self.refused(f"it has {size} bytes; at most {MAX_BYTES} are allowed")
        if self.kind is not Kind.JSON_OBJECT and not self.text.strip():
            raise self.refused("it is empty")

    def refused(self, problem: str, facts: Mapping[str, object] | None = None) -> HearthError:
        """Error for a constraint that cannot be enforced."""
        return HearthError(
            Reason.INVALID_ARGUMENT,
            f"{self.field} ({self.kind}) cannot be enforced: {problem}",
            {"field": self.field, **(facts or {})},
        )
