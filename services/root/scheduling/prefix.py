"""The prefix cache: full pages of KV cache, found again by the tokens that they hold.

A page's key is a keyed 128-bit digest of its tokens and of the key of the page before it. So it
stands for a whole prefix, as in vLLM's prefix caching. Tokens and the key before are stored and
compared too: two prefixes with the same key cannot be mistaken for each other. Pure bookkeeping:
the pages' holders are in pages.py.
"""

import secrets
from array import array
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass
from hashlib import blake2b

from hearth.root.scheduling.snapshots import Snapshots

_KEY_BYTES = 16
_NAME_BYTES = 32


def new_secret() -> bytes:
    """A random secret for an index."""
    return secrets.token_bytes(_KEY_BYTES)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A full page: the key of the prefix before it, and its tokens as 32-bit numbers."""

    key: bytes
    before: bytes
    tokens: bytes


class PrefixIndex:
    """Full pages by key. A page is in it at most once, and so is a key."""

    def __init__(self, secret: bytes | None = None, snapshots: int = 0) -> None:
        """secret: of the digests, so that no client can predict keys; random where not given.

        snapshots: number of snapshots of recurrent state.
        """
        self.snapshots = Snapshots(snapshots)
        self._secret = new_secret() if secret is None else secret
        self._pages: dict[bytes, int] = {}
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, page: int) -> bool:
        return page in self._entries

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def start(self, salt: bytes) -> bytes:
        """The key before the first page. Prefixes of different salts are never shared."""
        return blake2b(salt, key=self._secret, digest_size=_KEY_BYTES, person=b"start").digest()

    def key(self, before: bytes, tokens: Tokens[int]) -> bytes:
        """The key of a full page of `tokens` after the prefix `before`."""
        data = before + array("I", tokens).tobytes()
        return blake2b(data, key=self._secret, digest_size=_KEY_BYTES).digest()

    def name(self, before: bytes, tokens: Tokens[int]) -> bytes:
        """The name of such a page on disk: 256 bits, because its tokens are not compared there."""
        data = before + array("I", tokens).tobytes()
        return blake2b(data, key=self._secret, digest_size=_NAME_BYTES, person=b"disk").digest()

    def find(self, key: bytes, before: bytes, tokens: Tokens[int]) -> int | None:
        """The page with this prefix; None if there is none."""
        page = self._pages.get(key)
        if page is None:
            return None
        entry = self._entries[page]
        same = entry.before == before and entry.tokens == array("I", tokens).tobytes()
        return page if same else None

    def add(self, page: int, key: bytes, before: bytes, tokens: Tokens[int]) -> bool:
        """Enters a full page; False if another page has this key already."""
        if key in self._pages:
            return False
        self._pages[key] = page
        self._entries[page] = _Entry(key, before, array("I", tokens).tobytes())
        return True

    def forget(self, page: int) -> None:
        """Removes a page, if it is entered."""
        entry = self._entries.pop(page, None)
        if entry is not None:
            del self._pages[entry.key]
            self.snapshots.drop(entry.key)

    def has(self, key: bytes) -> bool:
        """True if a page has this key."""
        return key in self._pages

    def check(self) -> None:
        """Raises RuntimeError if keys and pages do not agree."""
        if {entry.key: page for page, entry in self._entries.items()} != self._pages:
            raise RuntimeError("the prefix cache's keys and pages differ")
