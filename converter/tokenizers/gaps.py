"""The tokens of models that fill a gap in a text (fill in the middle).

A GGUF file may name them by id (`Tokenizer.gap_ids`); else they are found by name. The names are
those that llama.cpp goes by (llama-vocab.cpp). Prompts follow its server: the text before the gap,
the text after it, then what fills it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hearth.converter.tokenizers.base import Tokenizer

_BEFORE = (
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
    "\u2581<PRE>", "<|code_prefix|>", "<|plamo:fim_prefix|>", "[PREFIX]",
)  # fmt: skip
_AFTER = (
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
    "\u2581<SUF>", "<|code_suffix|>", "<|plamo:fim_suffix|>", "[SUFFIX]",
)  # fmt: skip
_MIDDLE = (
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
    "\u2581<MID>", "<|code_middle|>", "<|plamo:fim_middle|>", "[MIDDLE]",
)  # fmt: skip
# Its token needs none for the middle.
_MISTRAL = "[PREFIX]"
_FILE = ("<|file_sep|>", "<file_sep>", "<|plamo:file_separator|>")


@dataclass(frozen=True, slots=True)
class GapTokens:
    """Ids of the tokens before each part of a prompt. file: before the name of a file, or None.

    middle is None for models whose text before the gap comes last (Mistral's).
    """

    before: int
    after: int
    middle: int | None
    file: int | None


def gap_tokens(tokenizer: Tokenizer) -> GapTokens | None:
    """The tokens; None for a model that fills no gaps. May encode a few texts."""
    given = tokenizer.gap_ids
    before, after = (
        given[part] if part in given else _token(tokenizer, names)
        for part, names in (("before", _BEFORE), ("after", _AFTER))
    )
    if before is None or after is None:
        return None
    middle = given["middle"] if "middle" in given else _token(tokenizer, _MIDDLE)
    if middle is None and before != tokenizer.control_ids.get(_MISTRAL):
        return None
    file = given["file"] if "file" in given else _token(tokenizer, _FILE)
    return GapTokens(before, after, middle, file)


def _token(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    for name in names:
        if name in tokenizer.control_ids:
            return tokenizer.control_ids[name]
    for name in names:
        # Some files list them as text that is one token.
        ids = tokenizer.encode(name, add_special=False)
        if len(ids) == 1 and tokenizer.token_text(ids[0]) == name:
            return ids[0]
    return None
