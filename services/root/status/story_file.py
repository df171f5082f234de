"""A file that records the membership's story as JSON lines, for a bug report."""

import logging
from pathlib import Path

from hearth.common.errors import HearthError, Reason

log = logging.getLogger(__name__)


class StoryFile:
    """Appends lines. A file that cannot be written any more is given up, with one log line."""

    def __init__(self, path: str) -> None:
        """Raises HearthError BAD_SETTING where the file cannot be opened."""
        self.path = path
        try:
            self._file = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            problem = f"--story {path} cannot be written: {error.strerror or error}"
            raise HearthError(Reason.BAD_SETTING, problem) from None

    def write(self, line: str) -> None:
        """Append one line."""
        if self._file.closed:
            return
        try:
            self._file.write(line + "\n")
        except OSError as error:
            log.error("--story %s ends here: %s", self.path, error.strerror or error)
            self.close()

    def close(self) -> None:
        """Write no more."""
        try:
            self._file.close()
        except OSError as error:  # what was left could not be written
            log.error("--story %s: %s", self.path, error.strerror or error)
