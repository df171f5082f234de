"""The tokenizer interface: text to ids, ids to bytes, bytes to whole characters.

Each tokenizer gives the bytes of a token; decoding, whole or as a stream, is implemented here for
all of them. Encoding is done by each format's own library.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from hearth.converter.errors import ModelError


class StreamDecoder:
    """Streaming decoder of tokens to whole characters.

    The texts of all pushes and of flush, joined, equal `Tokenizer.decode` of all the ids.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], strip_space: bool) -> None:
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes: whole characters, possibly empty."""
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

    vocab_size: one more than the highest id. bos_id: put before a text if `add_bos`. eos_ids: the
    tokens that end a generation. chat_template: Jinja source, where the model has one.
    """

    vocab_size: int
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    chat_template: str | None = None
    # SentencePiece marks the start of a text with a space that is not part of it.
    strip_space: bool = False

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text.

        add_special: begin with BOS where the model requires it. parse_special: names of control
        tokens in the text, as chat templates write them, become those tokens.

        Raises:
            ModelError: the text holds half of a surrogate pair, or the library cannot encode it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                f"the text holds {text[error.start]!r} at position {error.start}, half of a "
                "surrogate pair, which is not a character"
            ) from error
        with library_errors("the text cannot be encoded"):
            ids = self._encode(text, parse_special) if text else []
        if add_special and self.add_bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        return ids

    @abstractmethod
    def _encode(self, text: str, parse_special: bool) -> list[int]:
        """The ids of a text that is not empty and valid, without BOS."""

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

    def stream(self, after: Sequence[int] = ()) -> StreamDecoder:
        """A streaming decoder.

        after: ids before the stream, a prompt. decode(after) and the stream's text, joined, are the
        text of all the ids.
        """
        stream = StreamDecoder(self.token_bytes, self.strip_space)
        for token in after:
            stream.push(token)
        return stream


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
