"""The tokenizer interface: text to ids, ids to bytes, bytes to whole characters.

Each tokenizer gives the bytes of a token; decoding, whole or as a stream, is implemented here for
all of them. Encoding is done by each format's own library.
"""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from hearth.converter.errors import ModelError


class StreamDecoder:
    """Streaming decoder of tokens to whole characters.

    The texts of all pushes and of flush, joined, equal `Tokenizer.decode` of all the ids.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        strip_space: bool,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """names: control tokens that shall have a text, their names."""
        self._names = names or {}
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes: whole characters, possibly empty."""
        if token in self._names:
            return self.flush() + self._names[token]
        data = self._token_bytes(token)
        if self._strip_space and data:
            data = data.removeprefix(b" ")
            self._strip_space = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The rest: U+FFFD for an incomplete last character."""
        return self._utf8.decode(b"", final=True)


class Tokenizer(ABC):
    """A model's vocabulary.

    vocab_size: one more than the highest id. bos_id: put before a text if `add_bos`. prefix,
    suffix: all ids put before and after a text; a prefix of None is BOS if `add_bos`. eos_ids: the
    tokens that end a generation. chat_template: Jinja source, where the model has one;
    named_templates: its templates for other uses, as "tool_use". special_tokens: the tokens that
    the model's files name, as chat templates see them ("eos_token", "image_token"). control_ids:
    names of the control tokens, which have no text. gap_ids: of the tokens that the files name for
    the parts of a text with a gap ("before", "after", "middle", "file").
    """

    vocab_size: int
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    prefix: tuple[int, ...] | None = None
    suffix: tuple[int, ...] = ()
    chat_template: str | None = None
    named_templates: Mapping[str, str] = {}
    special_tokens: Mapping[str, str | list[str]] = {}
    control_ids: Mapping[str, int] = {}
    gap_ids: Mapping[str, int] = {}
    # SentencePiece marks the start of a text with a space that is not part of it.
    strip_space: bool = False

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text.

        add_special: begin with BOS where the model requires it. parse_special: names of control
        tokens in the text become those tokens, as in transformers; text of others must be encoded
        without, or by `encode_pieces`.

        Raises:
            ModelError: the text holds half of a surrogate pair, or the library cannot encode it.
        """
        self._check(text)
        with library_errors("the text cannot be encoded"):
            ids = self._encode(text, parse_special) if text else []
        return [*self._ids_before(), *ids, *self.suffix] if add_special else ids

    def encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        """The ids of a text in pieces: control tokens by id, and text that cannot make any.

        Otherwise like `encode` of all the pieces joined, without BOS. Raises ModelError like it.
        """
        for piece in pieces:
            if isinstance(piece, str):
                self._check(piece)
        with library_errors("the text cannot be encoded"):
            return self._encode_pieces(pieces)

    def template_for(self, tools: bool) -> str | None:
        """The chat template of a conversation with or without tools; None if there is none."""
        template = self.named_templates.get("tool_use") if tools else None
        return template or self.chat_template

    def _ids_before(self) -> tuple[int, ...]:
        if self.prefix is not None:
            return self.prefix
        return (self.bos_id,) if self.add_bos and self.bos_id is not None else ()

    def _check(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                f"the text holds {text[error.start]!r} at position {error.start}, half of a "
                "surrogate pair, which is not a character"
            ) from error

    @abstractmethod
    def _encode(self, text: str, parse_special: bool) -> list[int]:
        """The ids of a text that is not empty and valid, without BOS."""

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        """`encode_pieces` of valid texts; here for tokenizers without a rule across pieces."""
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            elif piece:
                ids += self._encode(piece, False)
        return ids

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens and ids without a token."""

    def token_text(self, token: int | None) -> str:
        """A token's own name, "<s>" or "<|eot_id|>", as chat templates use it; "" for None."""
        return "" if token is None else self._name(token)

    @abstractmethod
    def _name(self, token: int) -> str: ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; control tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join([*(stream.push(token) for token in ids), stream.flush()])

    def stream(
        self,
        after: Sequence[int] = (),
        visible: Collection[int] = frozenset(),
        strip_space: bool | None = None,
    ) -> StreamDecoder:
        """A streaming decoder.

        after: ids before the stream, a prompt. decode(after) and the stream's text, joined, are the
        text of all the ids. visible: control tokens whose names are part of the stream's text.
        strip_space: the tokenizer's own by default.
        """
        names = {token: self.token_text(token) for token in visible}
        strip_space = self.strip_space if strip_space is None else strip_space
        stream = StreamDecoder(self.token_bytes, strip_space, names)
        for token in after:
            stream.push(token)
        return stream


def any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the names, of several at one place the longest; None for none."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Convert any exception of a library to ModelError; panics of Rust code are BaseExceptions."""
    try:
        yield
    except (ModelError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = str(error).strip() or type(error).__name__
        raise ModelError(f"{what}: {reason[:500]}") from error
