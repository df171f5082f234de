"""Bounds of what a tokenizer.json may do to a text, checked when it is loaded.

Its parts are steps that the library runs one after the other. Each can make a text longer: by a
factor, as a replacement does, or by a constant, as a prefix does. Here the product and the sum over
all steps are bounded, and so the memory that a text of known size takes.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from typing import Any

from hearth.converter.errors import ModelError

# Published tokenizers have at most a dozen steps.
_MAX_STEPS = 64
# Bytes of a text after all steps, for one before; Unicode's compatible forms alone make 11.
_MAX_GROWTH = 1024
_MAX_ADDED_BYTES = 4096
_MAX_PATTERN = 1 << 14
_MAX_SURROUNDING = 64
MAX_TOKEN_BYTES = 1 << 14

# The most bytes that a step makes of one, where no text of its own decides that.
_GROWTH = {
    "NFC": 3, "NFD": 4, "NFKC": 11, "NFKD": 11, "Nmt": 1, "Lowercase": 2, "StripAccents": 1,
    "BertNormalizer": 8, "ByteLevel": 2, "Strip": 1,
}  # fmt: skip


def check_steps(name: str, step: Any, what: str) -> None:
    """Check one part of a tokenizer ("normalizer", ...). step: its JSON value, or None.

    Raises ModelError where a text could grow beyond the bounds.
    """
    growth, added = 1.0, 0
    for count, part in enumerate(_parts(step), 1):
        if count > _MAX_STEPS:
            raise ModelError(f"{what}: its {name} has more than {_MAX_STEPS} steps")
        factor, constant = _effect(part, what)
        growth *= factor
        added += constant
        if growth > _MAX_GROWTH or added > _MAX_ADDED_BYTES:
            raise ModelError(
                f"{what}: its {name} makes up to {growth:.3g} bytes of one and adds {added}; at "
                f"most {_MAX_GROWTH} and {_MAX_ADDED_BYTES} are allowed"
            )


def check_surrounding(step: Any, what: str) -> None:
    """Check a post-processor: the tokens that it puts around a text. Raises ModelError."""
    for part in _parts(step):
        single = part.get("single")
        if isinstance(single, list) and len(single) > _MAX_SURROUNDING:
            raise ModelError(
                f"{what} puts {len(single)} tokens around a text; at most {_MAX_SURROUNDING} are "
                "allowed"
            )


def check_tokens(tokens: Iterable[str], what: str) -> None:
    """Check the lengths of tokens. Raises ModelError."""
    longest = max(tokens, key=len, default="")
    size = len(longest.encode(errors="replace"))
    if size > MAX_TOKEN_BYTES:
        raise ModelError(
            f"{what} has a token of {size} bytes, {longest[:20]!r}...; at most {MAX_TOKEN_BYTES} "
            "are allowed"
        )


def state_of(part: Any) -> Any:
    """The JSON value of a part of a library tokenizer; None without one."""
    return None if part is None else json.loads(part.__getstate__())


def _parts(step: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part, those inside sequences in their place. No recursion: files nest."""
    left = [step]
    while left:
        part = left.pop()
        if not isinstance(part, dict):
            continue
        for key in ("normalizers", "pretokenizers", "processors", "decoders"):
            if isinstance(part.get(key), list):
                left += reversed(part[key])
                break
        else:
            yield part


def _effect(part: dict[str, Any], what: str) -> tuple[float, int]:
    """The factor by which a step can make a text longer, and the bytes that it can add."""
    kind = str(part.get("type"))
    pattern = part.get("pattern")
    inner = pattern if isinstance(pattern, dict) else {}
    source = str(inner.get("Regex", inner.get("String", "")))
    if len(source) > _MAX_PATTERN:
        raise ModelError(
            f"{what} has a pattern of {len(source)} characters; at most {_MAX_PATTERN} are allowed"
        )
    if kind == "Replace":
        size = len(str(part.get("content", "")).encode(errors="replace"))
        if "Regex" in inner or not source:
            return 1.0 + size, size  # it may match nothing, between any two characters
        return max(1.0, size / len(source.encode(errors="replace"))), 0
    if kind == "Prepend":
        return 1.0, len(str(part.get("prepend", "")).encode(errors="replace"))
    if kind == "Precompiled":
        return _longest_of_charsmap(str(part.get("precompiled_charsmap", "")), what), 0
    if kind == "Metaspace":
        size = len(str(part.get("replacement", "")).encode(errors="replace"))
        return float(max(1, size)), size
    return float(_GROWTH.get(kind, 1)), 1


def _longest_of_charsmap(encoded: str, what: str) -> float:
    """The longest text that a SentencePiece character map puts for a byte."""
    try:
        data = base64.b64decode(encoded)
    except (binascii.Error, ValueError) as error:
        raise ModelError(f"{what} has a damaged character map: {error}") from error
    return float(check_character_map(data, what))


def check_character_map(data: bytes, what: str) -> int:
    """The bytes of the longest text that a SentencePiece character map puts for a character.

    data: a trie behind its size, then the texts, each ended by a zero byte. Raises ModelError where
    one is too long.
    """
    trie = int.from_bytes(data[:4], "little")
    size = max(map(len, data[4 + trie :].split(b"\0")), default=1)
    if size > _MAX_GROWTH:
        raise ModelError(
            f"{what} replaces a character by {size} bytes; at most {_MAX_GROWTH} are allowed"
        )
    return max(1, size)
