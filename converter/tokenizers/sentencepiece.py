"""SentencePiece models: a .model file, or one built from the vocabulary inside a GGUF file."""

import re
import struct
from pathlib import Path

import sentencepiece

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer, library_errors
from hearth.converter.tokenizers.piece_kinds import BYTE, UNKNOWN, UNUSED
from hearth.converter.tokenizers.settings import Settings

_MAX_BYTES = 64 << 20
_SPACE = "▁"
_UNKNOWN_TEXT = " ⁇ ".encode()


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer of the sentencepiece library."""

    def __init__(self, model: bytes, settings: Settings, what: str) -> None:
        """model: a serialized ModelProto."""
        if not model:
            raise ModelError(f"{what} is not a SentencePiece model: it is empty")
        with library_errors(f"{what} is not a SentencePiece model"):
            inner = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size = inner.vocab_size()
            if self.vocab_size < 1:
                raise ModelError(f"{what} has an empty vocabulary")
            # Read all pieces once, so that a damaged one is found now. None is kept:
            # the library has them, and of a large vocabulary they are 20 MiB.
            controls = {}
            for id in range(self.vocab_size):
                _piece_bytes(inner, id)
                if inner.is_control(id):
                    controls[inner.id_to_piece(id)] = id
            first = inner.encode("a", out_type=str)
            self.strip_space = bool(first) and first[0].startswith(_SPACE)
        self._inner = inner
        self._controls = controls
        longest_first = sorted((name for name in controls if name), key=len, reverse=True)
        self._split = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
            if longest_first
            else None
        )
        self.bos_id, self.eos_ids = settings.special_ids(controls)
        if self.bos_id is None and inner.bos_id() >= 0:
            self.bos_id = inner.bos_id()
        if not self.eos_ids and inner.eos_id() >= 0:
            self.eos_ids = frozenset([inner.eos_id()])
        self.add_bos = settings.add_bos is not False
        self.chat_template = settings.chat_template

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        if not parse_special or self._split is None:
            return list(self._inner.encode(text))
        ids: list[int] = []
        for place, part in enumerate(self._split.split(text)):
            if place % 2:
                ids.append(self._controls[part])
            elif part:
                ids += self._inner.encode(part)
        return ids

    def token_bytes(self, token: int) -> bytes:
        return _piece_bytes(self._inner, token) if 0 <= token < self.vocab_size else b""

    def _name(self, token: int) -> str:
        return str(self._inner.id_to_piece(token)) if 0 <= token < self.vocab_size else ""


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
        body = _field(1, piece.encode()) + struct.pack("<Bf", 2 << 3 | 5, score) + _number(3, kind)
        parts.append(_field(1, body))
    trainer = b"".join(
        [
            _number(3, 2),  # model_type: BPE
            _number(4, len(pieces)),
            _number(35, int(byte_fallback)),
            _number(40, unknown),
            _number(41, bos_id),
            _number(42, eos_id),
            _number(43, -1),  # pad_id
            *(
                _field(field, pieces[id].encode())
                for field, id in ((45, unknown), (46, bos_id), (47, eos_id))
                if 0 <= id < len(pieces)
            ),
        ]
    )
    normalizer = b"".join(
        [
            _field(1, b"identity"),
            _number(3, int(add_dummy_prefix)),
            _number(4, int(remove_extra_whitespaces)),
            _number(5, 1),  # escape_whitespaces
        ]
    )
    return b"".join([*parts, _field(2, trainer), _field(3, normalizer)])


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)
