"""API keys of a root's clients, and the header that carries a key or a token."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hearth.common.certificates import Role
from hearth.common.errors import HearthError
from hearth.common.key_files import bad_file, check_mode, check_secret, read_file
from hearth.common.reread import Reread

log = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]

MAX_NAME_CHARACTERS = 100
# What an API key may allow.
_KEY_ROLES = (Role.CLIENT, Role.OPERATOR)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A line of the file of keys. The digest is the key's; `repr` hides it."""

    name: str
    role: Role
    digest: bytes = field(repr=False)


class ApiKeys:
    """The clients of a root, by key: a file of lines `NAME KEY [ROLE]`.

    A word that begins with # begins a comment. ROLE is client, the default, or operator. While the
    root runs, a line that cannot be read admits nobody, and neither does a file that is gone; both
    are logged as errors.
    """

    def __init__(self, path: Path) -> None:
        """Raises HearthError BAD_SETTING naming the file and the line."""
        _, problems = _parse_keys(path, read_file(path))
        if problems:
            raise problems[0]
        check_mode(path)
        self._keys = Reread([path], lambda: _read_keys(path), lambda _: {})

    def admits(self, metadata: Metadata) -> str:
        """The reason to refuse a call with this metadata; empty if it has one of the keys."""
        return bearer_problem(metadata, lambda given: self._find(given) is not None, "API key")

    def holder(self, metadata: Metadata) -> ApiKey | str:
        """The key of a call with this metadata, or the reason to refuse the call."""
        found: list[ApiKey] = []

        def accepts(given: str) -> bool:
            key = self._find(given)
            found.extend([key] if key is not None else [])
            return key is not None

        return bearer_problem(metadata, accepts, "API key") or found[0]

    def holds(self, key: ApiKey) -> bool:
        """True while the file has this key, for the same name and role."""
        return self._keys.get().get(key.name) == key

    def _find(self, given: str) -> ApiKey | None:
        digest = _digest(given)
        # Compares with every key, so that the time reveals nothing.
        same = [k for k in self._keys.get().values() if hmac.compare_digest(digest, k.digest)]
        return same[0] if same else None


def bearer_problem(metadata: Metadata, accepts: Callable[[str], bool], what: str) -> str:
    """The reason to refuse `authorization: Bearer ...`; empty if `accepts` returns True for it."""
    given = [value for key, value in metadata if key == "authorization"]
    if not given:
        return f"no {what}"
    text = given[0] if isinstance(given[0], str) else given[0].decode("latin-1")
    scheme, _, secret = text.partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer":
        return f"no {what} (authorization is not one `Bearer ...`)"
    return "" if accepts(secret) else f"a wrong {what}"


def same_secret(given: str, expected: str) -> bool:
    """Compares in constant time, without the lengths."""
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _read_keys(path: Path) -> Mapping[str, ApiKey]:
    """The keys of the lines that can be read, by name; the others are logged."""
    keys, problems = _parse_keys(path, read_file(path))
    try:
        check_mode(path)
    except HearthError as error:
        log.error("%s", error)
    for problem in problems:
        log.error("a key that cannot be read admits nobody: %s", problem)
    return keys


def key_lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that has some, without the comment.

    A comment begins with a word that begins with #, so that a key may have one in it.
    """
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        words = line.split()
        count = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
        if count:
            yield number, words[:count]


def _parse_keys(path: Path, data: bytes) -> tuple[Mapping[str, ApiKey], list[HearthError]]:
    """The keys by name, and what is wrong with the other lines."""
    keys: dict[str, ApiKey] = {}
    names: dict[bytes, str] = {}
    problems: list[HearthError] = []
    for number, words in key_lines(data):
        where = f"{path}, line {number}"
        try:
            key = _parse_key(where, words, path)
            if key.name in keys:
                raise bad_file(f"{where}: the name {key.name!r} is there twice", path)
            other = names.setdefault(key.digest, key.name)
            if other != key.name:
                problem = f"{where}: {key.name!r} has the key of {other!r}; each needs its own"
                raise bad_file(problem, path)
            keys[key.name] = key
        except HearthError as error:
            problems.append(error)
    if not keys and not problems:
        problem = f"{path} has 0 keys; give at least one line NAME KEY"
        problems.append(bad_file(problem, path))
    return keys, problems


def _parse_key(where: str, words: list[str], path: Path) -> ApiKey:
    """Raises HearthError BAD_SETTING."""
    if len(words) not in (2, 3):
        raise bad_file(f"{where}: {len(words)} words, expected NAME KEY or NAME KEY ROLE", path)
    name, secret = words[:2]
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        problem = (
            f"{where}: the name {name[:MAX_NAME_CHARACTERS]!r} has {len(name)} characters; at most "
            f"{MAX_NAME_CHARACTERS} that can be printed are allowed"
        )
        raise bad_file(problem, path)
    role = words[2] if len(words) == 3 else Role.CLIENT
    if role not in _KEY_ROLES:
        raise bad_file(f"{where}: the role is {role!r}; it is client or operator", path)
    check_secret(f"{where}: the key of {name!r}", secret, path)
    return ApiKey(name, Role(role), _digest(secret))
