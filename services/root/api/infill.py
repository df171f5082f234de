"""Prompts for a gap in a text, for models that are trained to fill it."""

from __future__ import annotations

from dataclasses import dataclass

from hearth.common.errors import HearthError
from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.gaps import gap_tokens
from hearth.root.engine.params import check_text, invalid

_SNIPPET = "\n\n--- snippet ---\n\n"


@dataclass(frozen=True, slots=True)
class Infill:
    """The text before a gap and the text after it.

    begun: the beginning of what fills it. files: (name, text) of other files, for context.
    """

    before: str
    after: str
    begun: str = ""
    files: tuple[tuple[str, str], ...] = ()

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [
            self.before,
            self.after,
            self.begun,
            *(part for each in self.files for part in each),
        ]


def infill_ids(tokenizer: Tokenizer, given: Infill) -> tuple[int, ...]:
    """Token ids of the prompt. Raises HearthError INVALID_ARGUMENT for a model that has none."""
    tokens = gap_tokens(tokenizer)
    if tokens is None:
        raise no_gaps()
    pieces: list[str | int] = []
    for name, text in given.files:
        if tokens.file is None:
            pieces += [_SNIPPET, text]
        else:
            pieces += [tokens.file, f"{name}\n{text}\n"]
    if given.files and tokens.file is not None:
        pieces += [tokens.file, "filename\n"]
    before: list[str | int] = [tokens.before, given.before]
    after: list[str | int] = [tokens.after, given.after]
    if tokens.middle is None:
        pieces += [*after, *before, given.begun]
    else:
        pieces += [*before, *after, tokens.middle, given.begun]
    try:
        ids = tokenizer.encode_pieces([piece for piece in pieces if piece != ""])
    except ModelError as error:
        raise invalid(f"the texts cannot become a prompt: {error}") from error
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    return tuple(ids)


def check_texts(given: Infill) -> int:
    """Bytes of all texts. Raises HearthError for one without UTF-8."""
    return sum(len(check_text("text around the gap", text).encode()) for text in given.texts)


def no_gaps() -> HearthError:
    """Error for a model without the tokens."""
    return invalid(
        "this model fills no gaps in a text: it has no tokens for the parts before and after one",
        field="suffix",
    )
