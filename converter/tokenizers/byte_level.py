"""The byte-level alphabet of GPT-2: each of the 256 bytes as one printable character.

Printable Latin-1 characters map to themselves, the others to U+0100 and up, in order (Radford
et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2).
"""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in set(_PRINTABLE)]

BYTE_TO_CHARACTER = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + place) for place, byte in enumerate(_OTHERS)
}
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def piece_bytes(piece: str) -> bytes:
    """The bytes of a token. A token with characters outside the alphabet is plain text."""
    try:
        return bytes([CHARACTER_TO_BYTE[character] for character in piece])
    except KeyError:
        return piece.encode()
