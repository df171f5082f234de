"""Tekken, Mistral's own vocabulary file (tekken.json): tiktoken ranks behind the control tokens.

Ids 0 to N - 1 are control tokens, and the token of rank R has id N + R (N is
default_num_special_tokens). Files without a list of control tokens have those of Mistral Nemo, as
in mistral-common.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import tiktoken

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json
from hearth.converter.tokenizers.base import Tokenizer, any_of, library_errors
from hearth.converter.tokenizers.settings import Settings

_MAX_BYTES = 64 << 20
_MAX_CONTROLS = 1 << 16
_MAX_PATTERN = 1 << 12
_CONTROLS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)  # fmt: skip
_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class TekkenTokenizer(Tokenizer):
    """A tokenizer of the tiktoken library, with control tokens before its own ids."""

    def __init__(
        self, ranks: dict[bytes, int], pattern: str, controls: list[str], settings: Settings
    ) -> None:
        """controls: names of the control tokens, by id."""
        with library_errors("tekken.json"):
            self._inner = tiktoken.Encoding(
                "tekken", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        self._pieces = {rank: piece for piece, rank in ranks.items()}
        self._controls = controls
        self.vocab_size = len(controls) + len(ranks)
        self.control_ids = {name: id for id, name in enumerate(controls)}
        self._names = any_of(controls)
        named = {part: name for part, name in _NAMED.items() if name in self.control_ids}
        self.special_tokens = {**named, **settings.special_tokens}
        self.bos_id, self.eos_ids = settings.special_ids(self.control_ids)
        if "bos_token" not in settings.sources:
            self.bos_id = self.control_ids.get(_NAMED["bos_token"])
        if "eos_token" not in settings.sources and _NAMED["eos_token"] in self.control_ids:
            self.eos_ids |= {self.control_ids[_NAMED["eos_token"]]}
        self.add_bos = settings.add_bos is not False
        self.suffix = settings.suffix(self.control_ids)
        self.chat_template = settings.chat_template
        self.named_templates = settings.named_templates

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        place = 0
        for match in self._names.finditer(text) if parse_special and self._names else ():
            ids += [*self._text(text[place : match.start()]), self.control_ids[match[0]]]
            place = match.end()
        return [*ids, *self._text(text[place:])]

    def _text(self, text: str) -> list[int]:
        first = len(self._controls)
        return [first + rank for rank in self._inner.encode_ordinary(text)]

    def token_bytes(self, token: int) -> bytes:
        return self._pieces.get(token - len(self._controls), b"")

    def _name(self, token: int) -> str:
        if 0 <= token < len(self._controls):
            return self._controls[token]
        return self.token_bytes(token).decode(errors="replace")


def load_tekken(path: Path, settings: Settings) -> TekkenTokenizer:
    """Load a tekken.json. Raises ModelError where it is damaged."""
    raw = read_json(path, _MAX_BYTES)
    config = raw.get("config")
    vocabulary = raw.get("vocab")
    if not isinstance(config, dict) or not isinstance(vocabulary, list):
        raise ModelError(f"{path} lacks config or vocab: it is not a tekken.json")
    size, count = (
        _number(path, config, key) for key in ("default_vocab_size", "default_num_special_tokens")
    )
    pattern = config.get("pattern")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= _MAX_PATTERN:
        raise ModelError(f"{path}: config.pattern is not a text of 1 to {_MAX_PATTERN} characters")
    if not 0 < count <= min(size, _MAX_CONTROLS) or size - count > len(vocabulary):
        raise ModelError(
            f"{path}: {size} tokens with {count} control tokens do not fit a vocabulary of "
            f"{len(vocabulary)}"
        )
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(vocabulary[: size - count]):
        piece = _piece(entry, rank)
        if piece is None or piece in ranks:
            raise ModelError(f"{path}: entry {rank} of vocab is damaged, or its token occurs twice")
        ranks[piece] = rank
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise ModelError(f"{path} lacks a token for {len(absent)} of the 256 bytes")
    return TekkenTokenizer(ranks, pattern, _controls(path, raw, count), settings)


def _controls(path: Path, raw: dict[str, Any], count: int) -> list[str]:
    """Names of the control tokens by id; those without one are <SPECIAL_id>."""
    stated = raw.get("special_tokens")
    names = [f"<SPECIAL_{id}>" for id in range(count)]
    if stated is None:
        names[: len(_CONTROLS)] = _CONTROLS[:count]
        return names
    for entry in stated if isinstance(stated, list) else [None]:
        id = entry.get("rank") if isinstance(entry, dict) else None
        name = entry.get("token_str") if isinstance(entry, dict) else None
        if type(id) is not int or not 0 <= id < count or not isinstance(name, str) or not name:
            raise ModelError(f"{path}: an entry of special_tokens is damaged: {entry!r:.60}")
        names[id] = name
    if len(set(names)) < count:
        raise ModelError(f"{path}: a name occurs twice in special_tokens")
    return names


def _piece(entry: Any, rank: int) -> bytes | None:
    if not isinstance(entry, dict) or entry.get("rank") != rank:
        return None
    try:
        return base64.b64decode(entry.get("token_bytes", ""), validate=True) or None
    except (binascii.Error, ValueError, TypeError):
        return None


def _number(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 <= value < 1 << 22:
        raise ModelError(f"{path}: config.{key} is {value!r:.60}, not a number of tokens")
    return value
