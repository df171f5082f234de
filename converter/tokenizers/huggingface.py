"""Tokenizers of the `tokenizers` library.

They come from tokenizer.json, or are byte-level BPE built from vocabulary and merges (files of
GPT-2
and Qwen2, and those inside GGUF)."""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from hearth.converter.errors import ModelError
from hearth.converter.shown import shown
from hearth.converter.tokenizers.base import Tokenizer, library_errors
from hearth.converter.tokenizers.bounds import (
    check_steps,
    check_surrounding,
    check_tokens,
    state_of,
)
from hearth.converter.tokenizers.byte_level import piece_bytes
from hearth.converter.tokenizers.patterns import GPT2, BytePairRules
from hearth.converter.tokenizers.settings import ADDED_TOKENS, AddedToken, Settings

_MAX_BYTES = 64 << 20
# The library keeps lists as long as the highest id.
_MAX_TOKENS = 1 << 22
_MAX_GAP = 1 << 16
_ADDED = '"added_tokens":'


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, with its decoder's rules applied token by token."""

    def __init__(
        self, inner: library.Tokenizer, settings: Settings, what: str, processed: bool = False
    ) -> None:
        """what: its source, for errors. processed: `inner` itself says what it puts around a text,
        and the settings do not."""
        with library_errors(what):
            decoder = inner.decoder
            state = None if decoder is None else json.loads(decoder.__getstate__())
            self._rules = _DecoderRules(state, what)
            add_tokens(inner, settings)
            added = inner.get_added_tokens_decoder()
            vocabulary = inner.get_vocab(with_added_tokens=True)
            around = inner.encode("a", add_special_tokens=True)
        if not vocabulary:
            raise ModelError(f"{what} has an empty vocabulary")
        check_tokens(vocabulary, what)
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > _MAX_TOKENS:
            raise ModelError(
                f"{what} has a token of id {self.vocab_size - 1}; ids are below {_MAX_TOKENS}"
            )
        self._inner = inner
        self._literal: _Literal | None = None
        hidden = settings.hidden
        self._added = {
            id: (token.content, token.special or token.content in hidden)
            for id, token in added.items()
        }
        self.strip_space = self._rules.strip_space
        self.bos_id, self.eos_ids = settings.special_ids(vocabulary)
        if processed:
            inside = [i for i, sequence in enumerate(around.sequence_ids) if sequence is not None]
            first, last = (inside[0], inside[-1]) if inside else (len(around.ids), len(around.ids))
            self.prefix = tuple(around.ids[:first])
            self.suffix = tuple(around.ids[last + 1 :])
            if self.bos_id is None and self.prefix and self._is_control(self.prefix[0]):
                self.bos_id = self.prefix[0]
            self.add_bos = self.bos_id is not None and self.prefix[:1] == (self.bos_id,)
        else:
            self.add_bos = settings.add_bos is True
            self.suffix = settings.suffix(vocabulary)
        self.chat_template = settings.chat_template
        self.named_templates = settings.named_templates
        self.special_tokens = settings.special_tokens
        self.gap_ids = settings.gap_ids
        if settings.is_bare:
            self.special_tokens = self._begin_and_end()
        self.control_ids = {
            content: id
            for id, (content, special) in self._added.items()
            if special or id in self.eos_ids or id == self.bos_id
        }
        self._bytes: dict[int, bytes] = {}

    def _begin_and_end(self) -> dict[str, str | list[str]]:
        """BOS and EOS for templates, where no file names them."""
        ids = {"bos_token": self.bos_id, "eos_token": min(self.eos_ids, default=None)}
        return {name: self.token_text(id) for name, id in ids.items() if id is not None}

    def _is_control(self, token: int) -> bool:
        return self._added.get(token, ("", False))[1]

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        if not parse_special:
            return self._encode_pieces([text])
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        if self._literal is None:
            self._literal = _Literal(self._inner, self.control_ids)
        return self._literal.encode(pieces)

    def token_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._lookup(token)
        return known

    def _lookup(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            return b""
        if token in self._added:
            content, special = self._added[token]
            return b"" if special else content.encode()
        piece = self._inner.id_to_token(token)
        return b"" if piece is None else self._rules.piece_bytes(piece)

    def _name(self, token: int) -> str:
        if token in self._added:
            return self._added[token][0]
        return self._inner.id_to_token(token) or "" if 0 <= token < self.vocab_size else ""


def add_tokens(inner: library.Tokenizer, settings: Settings) -> None:
    """Add tokens that files beside a tokenizer name, with their ids. Raises ModelError."""
    if not settings.added:
        return
    own = inner.get_added_tokens_decoder()
    known = {token.content for token in own.values()}
    same = {repr(token) for token in own.values()}
    # Unlike added_tokens_decoder, added_tokens.json does not change tokens of tokenizer.json.
    kept = own if settings.sources.get("added") == ADDED_TOKENS else {}
    next_id = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    nonce = secrets.token_hex(8)
    for token in settings.added:
        stated = _library_token(token)
        if repr(stated) in same or token.id in kept or (token.id is None and token.text in known):
            continue
        stated.special = token.special or token.text in settings.named
        if inner.token_to_id(token.text) is None:
            missing = 0 if token.id is None else max(0, token.id - next_id)
            if missing > _MAX_GAP:
                raise ModelError(
                    f"token {token.text[:40]!r} has id {token.id}, {missing} after the last one; "
                    f"at most {_MAX_GAP} ids may be unused"
                )
            # The library gives out ids one after another; no text can hold these names.
            unused = [f"\ufdd0{nonce}.{next_id + i}\ufdd1" for i in range(missing)]
            inner.add_tokens([library.AddedToken(name, special=True) for name in unused])
            next_id += missing + 1
        inner.add_tokens([stated])
        known.add(token.text)


def _library_token(token: AddedToken) -> library.AddedToken:
    return library.AddedToken(
        token.text,
        special=token.special,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=token.normalized,
    )


class _Literal:
    """A copy of a tokenizer whose control tokens have names that no text can hold.

    So a text and the control tokens in it are encoded together: rules that look across them, as
    for spaces at the start of a text, work as in the original.
    """

    def __init__(self, inner: library.Tokenizer, control_ids: Mapping[str, int]) -> None:
        # Random, so that no text can be written to contain one.
        nonce = secrets.token_hex(8)
        self._names = {id: f"\ufdd0{nonce}.{id}\ufdd1" for id in control_ids.values()}
        renamed = {name: self._names[id] for name, id in control_ids.items()}
        # Only the list of added tokens is read and replaced: a whole vocabulary takes a second.
        state = inner.to_str()
        place = state.index(_ADDED) + len(_ADDED)
        added, end = json.JSONDecoder().raw_decode(state, place)
        originals = {token["content"]: token["id"] for token in added}
        for token in added:
            if token["content"] in renamed:
                token |= {"content": renamed[token["content"]], "normalized": False}
        state = state[:place] + json.dumps(added) + state[end:]
        if isinstance(inner.model, models.Unigram):  # it finds whole tokens in a text
            whole = json.loads(state)
            vocabulary = whole["model"]["vocab"]
            whole["model"]["vocab"] = [[renamed.get(name, name), *x] for name, *x in vocabulary]
            state = json.dumps(whole)
        self._inner = library.Tokenizer.from_str(state)
        # The library gives other ids to tokens that its model does not know.
        self._ids = {}
        for name, id in originals.items():
            number = self._inner.token_to_id(renamed.get(name, name))
            if number is not None and number != id:
                self._ids[number] = id

    def encode(self, pieces: Sequence[str | int]) -> list[int]:
        """The ids of text and control tokens by id."""
        text = "".join(
            piece if isinstance(piece, str) else self._names.get(piece, "") for piece in pieces
        )
        ids = self._inner.encode(text, add_special_tokens=False).ids if text else []
        return [self._ids.get(id, id) for id in ids]


class _DecoderRules:
    """A tokenizer.json's decoder, applied to a single token.

    Two families are supported: byte-level (GPT-2), and SentencePiece's (a mark for spaces, <0xNN>
    for bytes). Both work token by token, except for the text's first space.
    """

    def __init__(self, decoder: Any, what: str) -> None:
        steps = decoder.get("decoders") if isinstance(decoder, dict) else None
        parts = steps if isinstance(steps, list) else [decoder]
        self.byte_level = False
        self.byte_fallback = False
        self.strip_space = False
        self.replacements: list[tuple[str, str]] = []
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "ByteLevel":
                self.byte_level = True
            elif kind == "ByteFallback":
                self.byte_fallback = True
            elif kind == "Replace" and "String" in part["pattern"]:
                self.replacements.append((part["pattern"]["String"], part["content"]))
            elif kind == "Metaspace":
                self.replacements.append((part["replacement"], " "))
                self.strip_space |= part.get("prepend_scheme") != "never"
            elif kind == "Strip" and (part["content"], part["stop"]) == (" ", 0):
                self.strip_space |= part["start"] > 0
            elif kind != "Fuse":
                raise ModelError(
                    f"{what} decodes by {shown(kind)}, which Hearth does not know; it knows "
                    "ByteLevel, and Replace, ByteFallback, Fuse, Strip and Metaspace"
                )

    def piece_bytes(self, piece: str) -> bytes:
        if self.byte_level:
            return piece_bytes(piece)
        if self.byte_fallback and len(piece) == 6 and piece[:3] == "<0x" and piece[5] == ">":
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                pass
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode()


def load_tokenizer_json(path: Path, settings: Settings) -> LibraryTokenizer:
    """Load a tokenizer.json.

    Raises ModelError where it is damaged or has an unsupported decoder.
    """
    with library_errors(f"cannot read {path}"):
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelError(f"{path} has {size} bytes; the limit for a tokenizer is {_MAX_BYTES}")
        inner = library.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        # Files saved by a training run may truncate or pad every text.
        inner.no_truncation()
        inner.no_padding()
        _set_prefix_space(inner, settings)
        for name in ("normalizer", "pre_tokenizer", "decoder"):
            check_steps(name, state_of(getattr(inner, name)), str(path))
        check_surrounding(state_of(inner.post_processor), str(path))
    return LibraryTokenizer(inner, settings, str(path), processed=True)


def _set_prefix_space(inner: library.Tokenizer, settings: Settings) -> None:
    """Apply add_prefix_space, in the classes for which it counts more than tokenizer.json."""
    before = inner.pre_tokenizer
    stated = settings.add_prefix_space
    byte_level = settings.tokenizer_class in ("GPT2Tokenizer", "Qwen2Tokenizer")
    if byte_level and isinstance(before, pre_tokenizers.ByteLevel):
        before.add_prefix_space = stated is True
        inner.pre_tokenizer = before
    if settings.tokenizer_class != "LlamaTokenizer" or stated is None:
        return
    if not getattr(inner.model, "byte_fallback", False):
        return  # byte-level, as Llama 3's, under the class of Llama 2's
    scheme = "first" if stated else "never"
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.normalizer = None
    inner.pre_tokenizer = None
    if stated and settings.legacy is not False:
        replace = normalizers.Replace(" ", "▁")
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if stated else []
    inner.decoder = decoders.Sequence([*steps, *strip])


def byte_pair_tokenizer(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    rules: BytePairRules,
    added: Iterable[tuple[int, str, bool]],
    settings: Settings,
    what: str,
) -> LibraryTokenizer:
    """A byte-level BPE tokenizer from its parts.

    added: (id, text, special) of tokens that are matched before the text is split.
    """
    with library_errors(what):
        inner = library.Tokenizer(
            models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.ignore_merges)
        )
        if rules.nfc:
            inner.normalizer = normalizers.NFC()
        splits = [
            pre_tokenizers.Split(library.Regex(pattern), "isolated") for pattern in rules.patterns
        ]
        prefix_space = settings.add_prefix_space is True
        if rules.patterns == (GPT2,):  # the library's own, which adds a space before it splits
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(prefix_space, use_regex=True)
        else:
            byte_level = pre_tokenizers.ByteLevel(prefix_space, use_regex=False)
            inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        inner.decoder = decoders.ByteLevel()
        _match_first(inner, added, what)
    return LibraryTokenizer(inner, settings, what)


def piece_pair_tokenizer(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    added: Iterable[tuple[int, str, bool]],
    settings: Settings,
    what: str,
) -> LibraryTokenizer:
    """BPE over SentencePiece's characters, as Gemma 4's: a mark for spaces, <0xNN> for bytes.

    Lines are merged apart from the line ends between them. added: as of byte_pair_tokenizer.
    """
    with library_errors(what):
        inner = library.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
        inner.normalizer = normalizers.Replace(" ", "▁")
        inner.pre_tokenizer = pre_tokenizers.Split(library.Regex(r"[^\n]+|\n+"), "isolated")
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        _match_first(inner, added, what)
    return LibraryTokenizer(inner, settings, what)


def _match_first(
    inner: library.Tokenizer, added: Iterable[tuple[int, str, bool]], what: str
) -> None:
    """Tokens that are matched before a text is split. Raises ModelError for an id of another."""
    tokens = sorted(added)
    for special in (True, False):
        inner.add_tokens(
            [
                library.AddedToken(text, special=special, normalized=False)
                for _, text, is_special in tokens
                if is_special == special
            ]
        )
    for id, text, _ in tokens:
        if inner.token_to_id(text) != id:
            raise ModelError(
                f"{what}: token {shown(text)} should have id {id}, but gets "
                f"{inner.token_to_id(text)}; the vocabulary has a gap"
            )
