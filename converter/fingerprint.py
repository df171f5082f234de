"""A model's cheap identity: from its files' sizes, times and headers, never their weights."""

import hashlib
from collections.abc import Iterable


def fingerprint(parts: Iterable[bytes | str | int]) -> bytes:
    """16 bytes over the parts, each marked with its length so that no two lists look alike."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
