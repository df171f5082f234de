"""Log lines on standard error: one line per event, whatever characters a peer's name has."""

from __future__ import annotations

import logging
import os


def printable(text: str) -> str:
    """Escapes characters of foreign text that are unsafe in a log line or a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _OneLine(logging.Formatter):
    """Escapes control characters of messages: names and errors of peers end up in logs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return printable(super().formatMessage(record))


def setup(level: str | None = None) -> None:
    """Logs to standard error from `level` up (default: HEARTH_LOG_LEVEL, else INFO)."""
    name = (level or os.environ.get("HEARTH_LOG_LEVEL") or "INFO").upper()
    known = logging.getLevelNamesMapping()
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(known.get(name, logging.INFO))
    if name not in known:
        root.warning("unknown log level %r: using INFO", name)
