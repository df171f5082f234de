"""distributed-llama's tokenizer files (`.t`), read as the metadata of a GGUF file.

A file lists its tokens as bytes with scores; in use are three headers. It does not say of which
kind the vocabulary is, which tokens are control tokens, or how a text is split and merged: this is
found out here. A vocabulary with an unknown piece among its first tokens is SentencePiece's. All
others are byte-level BPE, whose merges follow from the order of the scores.
"""

import logging
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.byte_level import BYTE_TO_CHARACTER
from hearth.converter.tokenizers.gguf import END_IDS_KEY, PRE_KEY, known_rules
from hearth.converter.tokenizers.merges import all_merges, merges_of
from hearth.converter.tokenizers.patterns import rules_for
from hearth.converter.tokenizers.piece_kinds import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED

log = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20
_MAX_HEADER = 4096
_MAX_TOKENS = 1 << 22
_MAX_TOKEN_BYTES = 1 << 10
# Merges are found in time that grows with the square of a token's length: published vocabularies
# have 9 million at most.
_MAX_SQUARES = 1 << 26
_FORMER_MAGIC, _MAGIC = 0x567123, 0x567124
# Keys of the header, by their numbers. Two ids end an answer in files of 2024, a list since 2025.
_KEYS = (
    "version", "vocabulary size", "longest token", "BOS id", "EOS id", "PAD id", "chat EOS id",
    "chat template", "chat stop", "EOS ids", "add BOS",
)  # fmt: skip
_DEFAULT_PRE = "gpt-2"
_UNKNOWN = b"<unk>"
_SPACE = "\u2581"
_LAST = -1e9
_FIRST_BYTE = 3  # <unk>, <s> and </s> come before the byte pieces.
_NAMED = re.compile(r"<[|\uff5c].+[|\uff5c]>|</?s>|<unk>|<pad>|\[[A-Z_/]{3,}\]")
_MARKUP = re.compile(r"</?[^<>\s]+>")


@dataclass(frozen=True)
class Vocabulary:
    """The content of a file. bos_id: None where there is none; template: "" for none."""

    tokens: list[bytes]
    scores: list[float]
    bos_id: int | None
    eos_ids: list[int]
    add_bos: bool
    template: str


def read_vocabulary(path: Path, pre: str | None = None) -> dict[str, Any]:
    """A tokenizer file as the metadata `tokenizer.*` of a GGUF file.

    pre: the rules that split a text, instead of those that the vocabulary is known by.

    Raises:
        ModelError: it is damaged, or of a version that is not known.
    """
    vocabulary = _Reader(path, _content(path)).vocabulary()
    pieces = _UNKNOWN in vocabulary.tokens[:_FIRST_BYTE]
    values = _pieces(vocabulary) if pieces else _byte_pairs(path, vocabulary, pre)
    values["tokenizer.ggml.add_bos_token"] = vocabulary.add_bos
    if vocabulary.bos_id is not None:
        values["tokenizer.ggml.bos_token_id"] = vocabulary.bos_id
    if vocabulary.eos_ids:
        values["tokenizer.ggml.eos_token_id"] = vocabulary.eos_ids[0]
        values[END_IDS_KEY] = vocabulary.eos_ids
    if vocabulary.template:
        values["tokenizer.chat_template"] = vocabulary.template
    return values


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelError(f"{path} has {size} bytes; the limit for a tokenizer is {_MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


class _Reader:
    """A cursor in a file's bytes that cannot pass their end."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._position = path, data, 0

    def vocabulary(self) -> Vocabulary:
        """The whole file. Raises ModelError."""
        (magic,) = self._numbers(1, "the magic")
        if magic == _FORMER_MAGIC:
            count, _, bos_id, eos_id, _ = self._numbers(5, "the header")
            return self._tokens(count, bos_id, [eos_id], True, "")
        if magic != _MAGIC:
            raise self._fail(f"it begins with {magic:#x}, so it is not a dllama tokenizer")
        values = self._header()
        template = self._template(values)
        eos_ids = [values[key] for key in ("EOS id", "chat EOS id") if values.get(key, -1) >= 0]
        listed = self._numbers(values.get("EOS ids", 0), "the EOS ids")
        return self._tokens(
            values.get("vocabulary size", 0),
            values.get("BOS id", -1),
            list(dict.fromkeys([*eos_ids, *listed])),
            values.get("add BOS", 1) == 1,
            template,
        )

    def _header(self) -> dict[str, int]:
        (size,) = self._numbers(1, "the size of the header")
        if not 8 <= size <= _MAX_HEADER or size % 8:
            raise self._fail(
                f"the header claims {size} bytes; it must be a multiple of 8, at most {_MAX_HEADER}"
            )
        numbers = self._numbers((size - 8) // 4, "the header")
        values: dict[str, int] = {}
        for key, value in zip(numbers[::2], numbers[1::2], strict=True):
            if not 0 <= key < len(_KEYS):
                raise self._fail(f"the header has the unknown key {key}; it may be a newer one")
            if _KEYS[key] in values:
                raise self._fail(f"the header says {_KEYS[key]} twice")
            values[_KEYS[key]] = value
        if values.get("version") not in (0, 1):
            raise self._fail(f"version {values.get('version')} is not known; known: 0 and 1")
        return values

    def _template(self, values: dict[str, int]) -> str:
        """The chat template, after which a stop text may lie.

        Files of version 0 have parts of a prompt in its place, which no program reads any more.
        """
        count = max(0, values.get("chat template", 0))
        if values["version"] == 0:
            for size in self._numbers(count, "the sizes of the chat's parts"):
                self._take(size, "a part of the chat")
            return ""
        raw = self._take(count, "the chat template")
        self._take(max(0, values.get("chat stop", 0)), "the chat's stop text")
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._fail(f"the chat template is not valid UTF-8 ({error})") from error

    def _tokens(
        self, count: int, bos_id: int, eos_ids: list[int], add_bos: bool, template: str
    ) -> Vocabulary:
        if not 1 <= count <= min(_MAX_TOKENS, self._left() // 8):
            raise self._fail(
                f"it claims {count} tokens, but has only {self._left()} bytes for them; it is "
                "truncated or damaged"
            )
        for id in (*eos_ids, *([bos_id] if bos_id >= 0 else [])):
            if not 0 <= id < count:
                raise self._fail(f"it names token {id} as begin or end, but has {count} tokens")
        tokens, scores = [], []
        for id in range(count):
            score, size = struct.unpack("<fI", self._take(8, f"token {id}"))
            if not 1 <= size <= _MAX_TOKEN_BYTES:
                raise self._fail(
                    f"token {id} has {size} bytes; there can be 1 to {_MAX_TOKEN_BYTES}"
                )
            if not abs(score) < float("inf"):
                raise self._fail(f"the score of token {id} is {score}, not a finite number")
            tokens.append(self._take(size, f"token {id}"))
            scores.append(score)
        if self._left():
            raise self._fail(f"{self._left()} bytes follow its last token; it is damaged")
        return Vocabulary(
            tokens, scores, bos_id if bos_id >= 0 else None, eos_ids, add_bos, template
        )

    def _numbers(self, count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self._take(4 * count, what)) if count else ()

    def _take(self, size: int, what: str) -> bytes:
        if not 0 <= size <= self._left():
            raise self._fail(
                f"{what} needs {size} bytes at byte {self._position}, but {self._left()} are left; "
                "it is truncated or damaged"
            )
        self._position += size
        return self._data[self._position - size : self._position]

    def _left(self) -> int:
        return len(self._data) - self._position

    def _fail(self, problem: str) -> ModelError:
        return ModelError(f"{self._path}: {problem}")


def _pieces(vocabulary: Vocabulary) -> dict[str, Any]:
    """A SentencePiece vocabulary: spaces become its mark, bytes its byte pieces."""
    tokens = vocabulary.tokens
    raw = [bytes([byte]) for byte in range(256)]
    has_bytes = tokens[_FIRST_BYTE : _FIRST_BYTE + 256] == raw
    # Converted from a tokenizer.json, pieces keep the mark, but single characters became bytes, and
    # scores their places. Runs of spaces merge last in the vocabularies of Llama and Mistral.
    marked = any(_SPACE.encode() in token for token in tokens)
    scores = [
        _LAST if marked and not token.strip(_SPACE.encode()) else score
        for token, score in zip(tokens, vocabulary.scores, strict=True)
    ]
    ends = {vocabulary.bos_id, *vocabulary.eos_ids}
    texts, kinds = [], []
    for id, token in enumerate(tokens):
        text = _restored(token) if marked else token.decode(errors="replace").replace(" ", _SPACE)
        kind = NORMAL
        if has_bytes and 0 <= id - _FIRST_BYTE < 256:
            text, kind = f"<0x{id - _FIRST_BYTE:02X}>", BYTE
        elif token == _UNKNOWN:
            kind = UNKNOWN
        elif id in ends or _NAMED.fullmatch(text):
            kind = CONTROL
        texts.append(text)
        kinds.append(kind)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
    }


def _restored(token: bytes) -> str:
    """A piece whose characters of GPT-2's byte alphabet were written as those bytes."""
    text = token.decode(errors="surrogateescape")
    codes = (ord(character) for character in text)
    return "".join(
        BYTE_TO_CHARACTER[code & 0xFF] if code <= 0x20 or 0xDC80 <= code <= 0xDCFF else chr(code)
        for code in codes
    )


def _byte_pairs(path: Path, vocabulary: Vocabulary, pre: str | None) -> dict[str, Any]:
    """A byte-level vocabulary; tokens that no merge makes are found by name."""
    tokens, bos_id = vocabulary.tokens, vocabulary.bos_id
    ends = {bos_id, *vocabulary.eos_ids}
    # In published files all tokens from BOS on are special; elsewhere BOS may be the first.
    special = bos_id if bos_id is not None and bos_id >= len(tokens) // 2 else len(tokens)
    order = sorted(range(len(tokens)), key=lambda id: -vocabulary.scores[id])
    regular = [tokens[id] for id in order if id < special and id not in ends]
    texts = ["".join(BYTE_TO_CHARACTER[byte] for byte in token) for token in tokens]
    rules = pre or known_rules(texts)
    if rules is None:
        rules = _DEFAULT_PRE
        log.warning(
            "%s does not say how a text is split before it is merged, and its vocabulary is not a "
            "known one; it is split as GPT-2's. If answers look wrong, give --pre NAME",
            path,
        )
    squares = sum(len(token) ** 2 for token in regular)
    if squares > _MAX_SQUARES:
        raise ModelError(
            f"{path}: the squares of its tokens' lengths add up to {squares}; the limit is "
            f"{_MAX_SQUARES}: it is damaged or malicious"
        )
    merges = all_merges(regular) if rules_for(rules).ignore_merges else merges_of(regular)
    made = {left + right for left, right in merges}
    kinds = [NORMAL] * len(tokens)
    for id, token in enumerate(tokens):
        if id in ends or (token not in made and len(token) > 1):
            text = token.decode(errors="replace")
            kinds[id] = _special_kind(text, id in ends)
            if kinds[id] != NORMAL:
                texts[id] = text
    return {
        "tokenizer.ggml.model": "gpt2",
        PRE_KEY: rules,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [
            f"{_alphabet(left)} {_alphabet(right)}" for left, right in merges
        ],
    }


def _special_kind(text: str, ends: bool) -> int:
    """The kind of a token that merges do not make: by its name, or because it begins or ends."""
    if ends or _NAMED.fullmatch(text):
        return CONTROL
    return USER_DEFINED if _MARKUP.fullmatch(text) else NORMAL


def _alphabet(token: Sequence[int]) -> str:
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)
