"""Log lines on standard error: one line per event, whatever characters a peer's name has.

As text, or as JSON objects (`--log-format json`). `fields` of a record (`extra={"fields": ...}`)
are facts for programs: JSON has them as keys of their own.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import time
from collections.abc import Callable

# Records of libraries per window.
MAX_LINES = 20
WINDOW_SECONDS = 60.0
_LIBRARIES = frozenset(("grpc", "asyncio", "concurrent"))


def printable(text: str) -> str:
    """Escapes characters of foreign text that are unsafe in a log line or a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _OneLine(logging.Formatter):
    """Escapes control characters of messages: names and errors of peers end up in logs."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        return printable(super().formatMessage(record))


class _Quiet(logging.Filter):
    """Bounds what gRPC and asyncio log: any peer can make them write a traceback for each call.

    At most MAX_LINES records in WINDOW_SECONDS, each of one line.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._begun = float("-inf")
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in _LIBRARIES or record.levelno < logging.WARNING:
            return True
        now = self._clock()
        if now - self._begun >= WINDOW_SECONDS:
            self._begun, self._count = now, 0
        self._count += 1
        if self._count > MAX_LINES:
            return False
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            record.msg = f"{record.getMessage()}: {type(error).__name__}: {error}"
            record.args = None
        record.exc_info = record.exc_text = None
        return True


class _Json(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, fields, and an exception."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def setup(level: str | None = None, json_lines: bool = False) -> None:
    """Logs to standard error from `level` up (default: HEARTH_LOG_LEVEL, else INFO)."""
    name = (level or os.environ.get("HEARTH_LOG_LEVEL") or "INFO").upper()
    known = logging.getLevelNamesMapping()
    handler = logging.StreamHandler()
    handler.addFilter(_Quiet())
    text = _OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_Json() if json_lines else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(known.get(name, logging.INFO))
    if name not in known:
        root.warning("unknown log level %r: using INFO", name)
