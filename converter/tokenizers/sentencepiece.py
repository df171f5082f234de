"""SentencePiece models: a .model file, or one built from the vocabulary inside a GGUF file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import sentencepiece

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer, any_of, library_errors
from hearth.converter.tokenizers.bounds import check_character_map, check_tokens
from hearth.converter.tokenizers.model_proto import (
    character_map,
    field,
    float_field,
    one_unknown,
    piece_kinds,
    varint_field,
    without_dummy_prefix,
)
from hearth.converter.tokenizers.piece_kinds import (
    BYTE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from hearth.converter.tokenizers.settings import AddedToken, Settings

_MAX_BYTES = 64 << 20
_MAX_GAP = 1 << 16
_SPACE = "▁"
_WORD = re.compile(r"\w")
_UNKNOWN_TEXT = " ⁇ ".encode()


class SentencePieceTokenizer(Tokenizer):
    """A .model file, with the rules of transformers around the sentencepiece library.

    Control, user-defined and added tokens are found first; the library encodes each part of the
    text between them, with or without the space that marks the start of a text (`_part`).
    """

    def __init__(self, model: bytes, settings: Settings, what: str) -> None:
        """model: a serialized ModelProto."""
        if not model:
            raise ModelError(f"{what} is not a SentencePiece model: it is empty")
        with library_errors(f"{what} is not a SentencePiece model"):
            check_character_map(character_map(model), what)
            kinds = piece_kinds(model)
            if kinds.count(UNKNOWN) > 1:
                model = one_unknown(model)
            inner = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._pieces = inner.vocab_size()
            if self._pieces < 1 or self._pieces != len(kinds):
                raise ModelError(f"{what} has an empty or damaged vocabulary")
            # Read all pieces once, so that a damaged one is found now. None is kept:
            # the library has them, and of a large vocabulary they are 20 MiB.
            marked: dict[int, AddedToken] = {}
            for id, kind in enumerate(kinds):
                _piece_bytes(inner, id)
                # The one UNKNOWN piece of the library is found in a text only if it is named.
                if kind in (CONTROL, USER_DEFINED) or (kind == UNKNOWN and id != inner.unk_id()):
                    marked[id] = AddedToken(id, inner.id_to_piece(id), kind != USER_DEFINED)
            check_tokens(map(inner.id_to_piece, range(self._pieces)), what)
            first = inner.encode("a", out_type=str)
            dummy_prefix = bool(first) and first[0].startswith(_SPACE)
        self._inner = inner
        self._bare = inner
        if dummy_prefix:
            self._bare = sentencepiece.SentencePieceProcessor(
                model_proto=without_dummy_prefix(model)
            )
        self._prefixed = dummy_prefix and settings.add_prefix_space is not False
        self._legacy = settings.legacy is not False
        own = _own_tokens(inner)
        for part in settings.sources:
            own.pop(part, None)
        for text in own.values():
            if (own_id := self._id_of(text)) is not None:
                marked[own_id] = AddedToken(own_id, text)
        self.special_tokens = {**own, **settings.special_tokens}
        self._mistral = _is_mistral(marked, settings, what)
        self.strip_space = self._prefixed
        self._marked = _with_added(marked, settings, self._pieces, self._id_of)
        self.vocab_size = max(self._pieces, max(self._marked, default=0) + 1)
        tokens = {token.text: id for id, token in self._marked.items() if token.text}
        self.bos_id, self.eos_ids = settings.special_ids(tokens)
        if self.bos_id is None and inner.bos_id() >= 0:
            self.bos_id = inner.bos_id()
        if "eos_token" not in settings.sources and inner.eos_id() >= 0:
            self.eos_ids |= {inner.eos_id()}
        ends = {*self.eos_ids, self.bos_id}
        self.control_ids = {
            text: id for text, id in tokens.items() if self._marked[id].special or id in ends
        }
        self._ids = tokens
        self._at_all = any_of(tokens)
        self._at_shown = any_of(text for text in tokens if text not in self.control_ids)
        self.add_bos = settings.add_bos is not False
        self.suffix = settings.suffix(tokens)
        self.chat_template = settings.chat_template
        self.named_templates = settings.named_templates

    def _id_of(self, text: str) -> int | None:
        id = self._inner.piece_to_id(text)
        return id if self._inner.id_to_piece(id) == text else None

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        pattern = self._at_all if parse_special else self._at_shown
        return self._parts(self._cut(text, pattern))

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        parts: list[str | int] = []
        for piece in pieces:
            parts += [piece] if isinstance(piece, int) else self._cut(piece, self._at_shown)
        return self._parts(parts)

    def _cut(self, text: str, pattern: re.Pattern[str] | None) -> list[str | int]:
        """The text between tokens, and the tokens' ids, by the flags of each token."""
        parts: list[str | int] = []
        place = 0
        for match in pattern.finditer(text) if pattern else ():
            begin, end = match.span()
            token = self._marked[self._ids[match[0]]]
            around = text[begin - 1 : begin] + text[end : end + 1]
            if begin < place or (token.single_word and _WORD.search(around)):
                continue
            before = text[place:begin]
            parts += [before.rstrip() if token.lstrip else before, self._ids[match[0]]]
            place = end
            if token.rstrip:
                place += len(text) - end - len(text[end:].lstrip())
        return [*parts, text[place:]]

    def _parts(self, parts: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        first = True
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += self._part(part, first)
            first = first and part == ""
        return ids

    def _part(self, text: str, first: bool) -> list[int]:
        """The ids of text without tokens. first: nothing is before it.

        The start of a text is marked by a space; legacy tokenizers mark each part so. Mistral's do
        not where a part behind a control token begins with a space (mistral-common). Tokenizers
        with `legacy` false mark nothing but a start without a space.
        """
        spaced = text.startswith((" ", _SPACE))
        if self._legacy:
            marks = first or not (self._mistral and spaced)
        else:
            marks = first and not spaced
        return list((self._inner if self._prefixed and marks else self._bare).encode(text))

    def token_bytes(self, token: int) -> bytes:
        marked = self._marked.get(token)
        if marked is not None:
            return b"" if marked.special else marked.text.replace(_SPACE, " ").encode()
        return _piece_bytes(self._inner, token) if 0 <= token < self._pieces else b""

    def _name(self, token: int) -> str:
        if token in self._marked:
            return self._marked[token].text
        return str(self._inner.id_to_piece(token)) if 0 <= token < self._pieces else ""


def _is_mistral(marked: Mapping[int, AddedToken], settings: Settings, what: str) -> bool:
    """Test for Mistral's vocabularies: by model, by name or control tokens, or without any file."""
    if settings.model_type is not None:
        return "mistral" in settings.model_type or "mixtral" in settings.model_type
    versioned = re.search(r"\.v\d+(?:m\d+)?$", what) is not None
    return versioned or settings.is_bare or any(token.text == "[INST]" for token in marked.values())


def _with_added(
    marked: dict[int, AddedToken],
    settings: Settings,
    size: int,
    id_of: Callable[[str], int | None],
) -> dict[int, AddedToken]:
    """Tokens that are found before a text is encoded, by id: the model's and the added ones.

    An added token with the id of a piece takes its place, as files rename placeholders. Raises
    ModelError for ids far beyond the vocabulary.
    """
    added = settings.added
    known = {token.text: id for id, token in marked.items()}
    next_id = max(size, max((token.id or 0 for token in added), default=0) + 1)
    for token in added:
        id = token.id
        if id is None:
            id = known[token.text] if token.text in known else id_of(token.text)
        if id is None:
            id, next_id = next_id, next_id + 1
        elif id >= size + _MAX_GAP:
            raise ModelError(
                f"token {token.text[:40]!r} has id {id}, in a vocabulary of {size} pieces"
            )
        marked[id] = replace(token, id=id, special=token.special or token.text in settings.hidden)
        known[token.text] = id
    return marked


def _own_tokens(inner: sentencepiece.SentencePieceProcessor) -> dict[str, str]:
    """Special tokens that the model itself names, for templates."""
    ids = {
        "bos_token": inner.bos_id(),
        "eos_token": inner.eos_id(),
        "unk_token": inner.unk_id(),
        "pad_token": inner.pad_id(),
    }
    return {name: str(inner.id_to_piece(id)) for name, id in ids.items() if id >= 0}


def _piece_bytes(inner: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    piece = str(inner.id_to_piece(token))
    if inner.is_control(token) or inner.is_unused(token):
        return b""
    if inner.is_unknown(token):
        return _UNKNOWN_TEXT
    if inner.is_byte(token):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


def load_sentencepiece(path: Path, settings: Settings) -> SentencePieceTokenizer:
    """Load a SentencePiece .model file. Raises ModelError where it is damaged."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{path} has more than {_MAX_BYTES} bytes, too many for a tokenizer")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    return SentencePieceTokenizer(data, settings, str(path))


def build_model(
    pieces: list[str],
    scores: list[float],
    types: list[int],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    bos_id: int,
    eos_id: int,
) -> bytes:
    """A serialized ModelProto (sentencepiece_model.proto) of kind BPE, without a normalizer."""
    unknown = types.index(UNKNOWN) if UNKNOWN in types else -1
    byte_fallback = BYTE in types
    parts = []
    seen: set[str] = set()
    for id, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        if not piece or piece in seen:
            # Padding of the vocabulary; the library requires distinct pieces.
            piece, kind = f"<hearth_unused_{id}>", UNUSED
        seen.add(piece)
        body = field(1, piece.encode()) + float_field(2, score) + varint_field(3, kind)
        parts.append(field(1, body))
    trainer = b"".join(
        [
            varint_field(3, 2),  # model_type: BPE
            varint_field(4, len(pieces)),
            varint_field(35, int(byte_fallback)),
            varint_field(40, unknown),
            varint_field(41, bos_id),
            varint_field(42, eos_id),
            varint_field(43, -1),  # pad_id
            *(
                field(number, pieces[id].encode())
                for number, id in ((45, unknown), (46, bos_id), (47, eos_id))
                if 0 <= id < len(pieces)
            ),
        ]
    )
    normalizer = b"".join(
        [
            field(1, b"identity"),
            varint_field(3, int(add_dummy_prefix)),
            varint_field(4, int(remove_extra_whitespaces)),
            varint_field(5, 1),  # escape_whitespaces
        ]
    )
    return b"".join([*parts, field(2, trainer), field(3, normalizer)])
