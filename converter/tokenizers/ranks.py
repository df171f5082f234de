"""Tokenizers published as ranks (tiktoken): lines of a base64 token and its rank.

The files contain neither pattern nor special tokens; both follow from the number of ranks.
"""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer, library_errors
from hearth.converter.tokenizers.patterns import GPT2, LLAMA3
from hearth.converter.tokenizers.settings import Settings

_MAX_BYTES = 64 << 20


def _llama3_specials() -> list[str]:
    """The 256 special tokens of Llama 3.1, which keep the ids of Llama 3.0's."""
    names = [
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>",
        "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    ]  # fmt: skip
    return names + [f"<|reserved_special_token_{i}|>" for i in range(3, 256 - len(names) + 3)]


@dataclass(frozen=True)
class _Family:
    name: str
    pattern: str
    specials: list[str]
    bos: str | None


_FAMILIES = {
    50256: _Family("gpt2", GPT2, ["<|endoftext|>"], None),
    128000: _Family(
        "llama3",
        LLAMA3,
        _llama3_specials(),
        "<|begin_of_text|>",
    ),
}


class RankTokenizer(Tokenizer):
    """A tokenizer of the tiktoken library."""

    def __init__(self, ranks: dict[bytes, int], settings: Settings, what: str) -> None:
        family = _FAMILIES.get(len(ranks))
        if family is None:
            known = ", ".join(f"{count} ({f.name})" for count, f in sorted(_FAMILIES.items()))
            raise ModelError(
                f"{what} has {len(ranks)} ranks, and which tokenizer that is Hearth does not know; "
                f"it knows {known}"
            )
        specials = {name: len(ranks) + place for place, name in enumerate(family.specials)}
        with library_errors(what):
            self._inner = tiktoken.Encoding(
                family.name,
                pat_str=family.pattern,
                mergeable_ranks=ranks,
                special_tokens=specials,
            )
        self._pieces = {rank: piece for piece, rank in ranks.items()}
        self._names = {id: name for name, id in specials.items()}
        self.vocab_size = len(ranks) + len(specials)
        self.bos_id, self.eos_ids = settings.special_ids(specials)
        if self.bos_id is None and family.bos is not None:
            self.bos_id = specials[family.bos]
        self.add_bos = family.bos is not None if settings.add_bos is None else settings.add_bos
        self.suffix = settings.suffix(specials)
        self.chat_template = settings.chat_template
        self.named_templates = settings.named_templates
        self.special_tokens = settings.special_tokens
        self.control_ids = specials

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        if parse_special:
            return self._inner.encode(text, allowed_special="all", disallowed_special=())
        return self._inner.encode_ordinary(text)

    def token_bytes(self, token: int) -> bytes:
        return self._pieces.get(token, b"")

    def _name(self, token: int) -> str:
        return self._names.get(token) or self.token_bytes(token).decode(errors="replace")


def is_ranks(path: Path) -> bool:
    """Test whether a file begins like ranks; `tokenizer.model` is the name of two formats."""
    try:
        with path.open("rb") as stream:
            fields = stream.readline(4096).split()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    return len(fields) == 2 and fields[1].isdigit() and _base64(fields[0]) is not None


def load_ranks(path: Path, settings: Settings) -> RankTokenizer:
    """Load a file of ranks. Raises ModelError where it is damaged or of an unknown family."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path} has more than {_MAX_BYTES} bytes, too many for a tokenizer")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        piece = _base64(fields[0])
        if len(fields) != 2 or not fields[1].isdigit() or len(fields[1]) > 9 or not piece:
            raise ModelError(
                f"{path}, line {number}: {line[:60]!r} is not a base64 token and its rank"
            )
        if piece in ranks:
            raise ModelError(f"{path}, line {number}: token {piece!r} occurs twice")
        ranks[piece] = int(fields[1])
    # The library does not check these: a missing byte or a gap would panic during encoding.
    if set(ranks.values()) != set(range(len(ranks))):
        raise ModelError(f"{path} has {len(ranks)} tokens, but their ranks are not 0 to the last")
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise ModelError(f"{path} lacks a token for {len(absent)} of the 256 bytes")
    return RankTokenizer(ranks, settings, str(path))


def _base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
