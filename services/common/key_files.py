"""Files of secrets: read within a limit, and refused where others may read or change them."""

from __future__ import annotations

import codecs
import logging
import os
import stat
from pathlib import Path

from hearth.common import system_files
from hearth.common.errors import HearthError, Reason

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
# Minimum length of a token or an API key: 16 random characters are 96 bits.
MIN_SECRET_CHARACTERS = 16
MAX_SECRET_CHARACTERS = 1024
# A group may read a secret (Kubernetes mounts them so: 0440 and fsGroup), and nobody else.
_FORBIDDEN = stat.S_IWGRP | stat.S_IRWXO
# Environment variable that turns the refusal into a warning, for file systems without modes.
ANY_MODE = "HEARTH_ANY_KEY_MODE"


def read_file(path: Path) -> bytes:
    """The contents of a small file, without a byte order mark. Raises HearthError BAD_SETTING."""
    try:
        with open(path, "rb", opener=system_files.open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise bad_file(f"{path} is not a regular file: give the name of one", path)
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = (
            f"cannot read {path}: {error.strerror or error}; `hearth certs init` creates the "
            "files for --tls and --api-keys"
        )
        raise bad_file(problem, path) from None
    if len(data) > MAX_FILE_BYTES:
        problem = f"{path} has more than {MAX_FILE_BYTES} bytes: it is not the right file"
        raise bad_file(problem, path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise bad_file(f"{path} is text in UTF-16: save it as UTF-8", path)
    # Windows editors begin a file with it; gRPC and comparisons of secrets fail on it.
    return data.removeprefix(codecs.BOM_UTF8)


def check_mode(path: Path) -> None:
    """Raises HearthError BAD_SETTING for a secret that others may read or that others may write.

    With HEARTH_ANY_KEY_MODE=1 it is a warning. A file that cannot be found passes.
    """
    if not system_files.has_modes():
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if not mode & _FORBIDDEN:
        return
    can = "be changed by its group or by others" if mode & 0o022 else "be read by every user"
    problem = f"{path} is secret and can {can} (mode {mode:04o}): run chmod 600 {path}"
    if os.environ.get(ANY_MODE, "").strip().lower() in ("1", "true", "yes", "on"):
        log.warning("%s (allowed by %s)", problem, ANY_MODE)
        return
    raise bad_file(f"{problem}; where the file system has no modes, set {ANY_MODE}=1", path)


def check_secret(what: str, text: str, path: Path) -> None:
    """Raises HearthError BAD_SETTING for a secret that is too short or does not fit a header."""
    if not MIN_SECRET_CHARACTERS <= len(text) <= MAX_SECRET_CHARACTERS:
        problem = (
            f"{what} has {len(text)} characters; it must have {MIN_SECRET_CHARACTERS} to "
            f"{MAX_SECRET_CHARACTERS}"
        )
        raise bad_file(problem, path)
    if not (text.isascii() and text.isprintable()) or " " in text:
        problem = f"{what} has characters not allowed in a header: use letters and digits"
        raise bad_file(problem, path)


def bad_file(problem: str, path: Path) -> HearthError:
    """The error for a file of settings."""
    return HearthError(Reason.BAD_SETTING, problem, {"path": path})
