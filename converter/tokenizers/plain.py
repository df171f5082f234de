"""The tokenizer for models without one: a byte is a token; other ids show their number."""

from hearth.converter.tokenizers.base import Tokenizer

_WHITESPACE = b"\t\n\r"


class PlainTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes, 256 begins a text, and a higher id N reads " N".

    No token ends a text.

    Control characters are shown by their number too, so output is safe to print.
    """

    NAME = "bytes"
    BOS = 256

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.bos_id = self.BOS if vocab_size > self.BOS else None
        self.add_bos = self.bos_id is not None

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        return [byte % self.vocab_size for byte in text.encode()]

    def token_bytes(self, token: int) -> bytes:
        if token == self.bos_id or not 0 <= token < self.vocab_size:
            return b""
        if (32 <= token < 256 and token != 127) or (token < 32 and token in _WHITESPACE):
            return bytes([token])
        return f" {token}".encode()

    def _name(self, token: int) -> str:
        return f"<{token}>"
