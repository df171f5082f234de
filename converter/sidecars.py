"""Sidecars: digests of a model's file, kept in this user's cache between starts.

JSON, written by rename, in ~/.cache/hearth/digests. One that is damaged, foreign or writable to
others is not used.
"""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from hearth.common import system_files
from hearth.converter.files import OpenFile

log = logging.getLogger(__name__)

# (offset, bytes) of a tensor in its file.
Range = tuple[int, int]

_VERSION = 1
# Times of files are no finer than this on some systems (FAT). A file that changed less than this
# before it was read may change again without a new time, so its digests are not kept.
_RACY_NS = 2_000_000_000
_MAX_BYTES = 64 << 20
_MOST_FILES = 512


def sidecar_folder() -> Path | None:
    """The folder of this user's sidecars; None where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path("~/.cache").expanduser()) / "hearth" / "digests"
    except RuntimeError:
        return None


def load_digests(file: OpenFile, ranges: Sequence[Range]) -> dict[Range, bytes]:
    """The digests of a sidecar that is of this file in this state; empty where there is none."""
    path = _sidecar(file)
    if path is None:
        return {}
    try:
        descriptor = os.open(path, os.O_RDONLY | system_files.AS_IT_IS)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            if (
                not stat.S_ISREG(status.st_mode)
                or system_files.foreign(status)
                or status.st_size > _MAX_BYTES
            ):
                log.warning("%s is not this user's own file; its digests are not used", path)
                return {}
            value = json.loads(stream.read())
        check = value.pop("check")
        if check != _check(value) or value["version"] != _VERSION:
            return {}
        if value["state"] != asdict(file.state):
            return {}
        stored = value["digests"]
        found = {}
        for place in ranges:
            digest = bytes.fromhex(stored[f"{place[0]}+{place[1]}"])
            if len(digest) != 16:
                return {}
            found[place] = digest
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.debug("cannot use the digests in %s: %s", path, error)
        return {}


def store_digests(file: OpenFile, digests: dict[Range, bytes], began_ns: int) -> None:
    """Keep digests of a file that was last changed well before it was read."""
    path = _sidecar(file)
    changed = max(file.state.mtime_ns, file.state.ctime_ns)
    if path is None or changed > began_ns - _RACY_NS:
        return
    value = {
        "version": _VERSION,
        "path": str(file.path),
        "state": asdict(file.state),
        "digests": {f"{begin}+{size}": d.hex() for (begin, size), d in digests.items()},
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _tidy(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | system_files.PLAIN
        with os.fdopen(os.open(temporary, flags, 0o600), "w") as stream:
            json.dump(value | {"check": _check(value)}, stream)
        temporary.replace(path)
    except OSError as error:
        log.debug("cannot keep the digests of %s: %s", file.path, error)
        with suppress(OSError):
            temporary.unlink()


def _sidecar(file: OpenFile) -> Path | None:
    folder = sidecar_folder()
    name = hashlib.blake2b(os.fsencode(os.path.realpath(file.path)), digest_size=16).hexdigest()
    return None if folder is None else folder / f"{name}.json"


def _check(value: dict[str, object]) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _tidy(folder: Path) -> None:
    """Remove the oldest sidecars, so that models that are gone leave nothing for long."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.lstat().st_mtime)
    for path in files[: max(0, len(files) - _MOST_FILES + 1)]:
        path.unlink(missing_ok=True)
