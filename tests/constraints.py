"""Constraints in tests: a vocabulary of bytes, and whether an answer is allowed."""

import numpy as np
import numpy.typing as npt
from serving_fakes import EOS, VOCAB, ByteTokenizer

from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.root.engine.structure.matching import Matcher


class ToolTokenizer(ByteTokenizer):
    """A byte a token, and two control tokens more."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = VOCAB + 2
        self.control_ids = {**self.control_ids, "<|tool|>": VOCAB, "<|end|>": VOCAB + 1}

    def _name(self, token: int) -> str:
        return {VOCAB: "<|tool|>", VOCAB + 1: "<|end|>"}.get(token) or super()._name(token)


def lark(text: str) -> Constraint:
    return Constraint(Kind.GRAMMAR, text)


def flags(matcher: Matcher) -> npt.NDArray[np.bool_]:
    """The tokens that may come next: [8 n], False beyond the vocabulary."""
    return np.unpackbits(matcher.mask(), bitorder="little").astype(np.bool_)


def accepts(matcher: Matcher, text: str | list[int]) -> bool:
    """True if an answer may be `text`, and end there."""
    tokens = list(text.encode()) if isinstance(text, str) else text
    for token in tokens:
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return matcher.length is not None or matcher.allows(EOS)
