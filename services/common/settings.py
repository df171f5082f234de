"""Settings from the environment and from configuration files, as text for an option to convert.

HEARTH_CACHE_DIR sets `--cache-dir`, and so does `cache-dir = "..."` in hearth.toml. The command
line overrides the environment, which overrides the files, which override the option's default.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.common.errors import HearthError, Reason
from hearth.common.spelling import nearest

PREFIX = "HEARTH_"
CONFIG_VARIABLE = "HEARTH_CONFIG"
SYSTEM_FILE = Path("/etc/hearth/hearth.toml")
# A file of settings is a page of text; more than this is another file.
_MAX_FILE_BYTES = 1 << 20
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


@dataclass(frozen=True, slots=True)
class Setting:
    """The text of an option from elsewhere than the command line, and its origin for errors."""

    # One value, or those of a list.
    text: str | list[str]
    # "HEARTH_THREADS", or "/etc/hearth/hearth.toml: threads".
    origin: str
    in_file: bool = False


def variable(option: str) -> str:
    """The environment variable of an option: HEARTH_CACHE_DIR of --cache-dir."""
    return PREFIX + option.removeprefix("--").replace("-", "_").upper()


def words(text: str) -> list[str]:
    """The values of a list: separated by spaces or commas."""
    return [part for part in re.split(r"[\s,]+", text) if part]


def truth(text: str) -> bool:
    """The value of a flag. Raises ValueError with the words that it takes."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("it must be 1 or 0, true or false, yes or no, on or off")
    return word in _TRUE


def from_environment(options: Sequence[str], environ: Mapping[str, str]) -> Setting | None:
    """The first of an option's names that has a variable; an empty one counts as absent."""
    for option in options:
        name = variable(option)
        if text := environ.get(name, ""):
            return Setting(text, name)
    return None


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """One hearth.toml: keys for every command, and a table for each command's own."""

    path: Path
    tables: Mapping[str, Any]

    def find(self, command: str, options: Sequence[str]) -> Setting | None:
        """The setting of an option, the command's table first. Raises HearthError."""
        names = [option.removeprefix("--") for option in options]
        tables = (self.tables.get(command, {}), self.tables)
        for table in tables:
            for name in names:
                for key in (name, name.replace("-", "_")):
                    if key in table and not isinstance(table[key], dict):
                        origin = f"{self.path}: {key}"
                        return Setting(_as_text(table[key], origin), origin, in_file=True)
        return None

    def check(self, known: Mapping[str, frozenset[str]]) -> None:
        """Raises HearthError for a key that no command has. known: options of each command."""
        everywhere = frozenset().union(*known.values())
        for key, value in self.tables.items():
            if isinstance(value, dict):
                if key not in known:
                    raise _bad(
                        f"{self.path}: there is no command [{key}]{nearest(key, known)}; "
                        f"{_list(known)}"
                    )
                for name in value:
                    if _dashed(name) not in known[key]:
                        raise _bad(
                            f"{self.path}: hearth {key} has no option {name}"
                            f"{nearest(name, known[key])}; see `hearth {key} --help`"
                        )
            elif _dashed(key) not in everywhere:
                raise _bad(f"{self.path}: no command has an option {key}{nearest(key, everywhere)}")


def user_file(environ: Mapping[str, str]) -> Path:
    """This user's settings: ~/.config/hearth/hearth.toml."""
    base = environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return Path(base) / "hearth" / "hearth.toml"


def settings_files(
    chosen: str | None = None, environ: Mapping[str, str] | None = None
) -> tuple[SettingsFile, ...]:
    """The files that are read, the one that overrides the others first. Raises HearthError.

    chosen: of --config, read instead of the user's and the system's; HEARTH_CONFIG likewise.
    """
    environ = os.environ if environ is None else environ
    chosen = chosen or environ.get(CONFIG_VARIABLE)
    if chosen:
        return (_read(Path(chosen).expanduser()),)
    return tuple(_read(path) for path in (user_file(environ), SYSTEM_FILE) if path.exists())


def _read(path: Path) -> SettingsFile:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _bad(f"cannot read the settings in {path}: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise _bad(f"{path} is larger than {_MAX_FILE_BYTES} bytes: it is not a settings file")
    try:
        # With the mark that some editors put first.
        return SettingsFile(path, tomllib.loads(content.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise _bad(f"{path} is not in UTF-8, at byte {error.start}: save it so") from None
    except (ValueError, RecursionError) as error:
        raise _bad(f"{path} is not a TOML file: {error}") from None


def _as_text(value: Any, origin: str) -> str | list[str]:
    """A TOML value as an option's text."""
    if isinstance(value, list):
        return [str(_as_text(item, origin)) for item in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise _bad(f"{origin} must be a text, a number, true, false or a list of them")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _list(known: Mapping[str, frozenset[str]]) -> str:
    return f"commands are {', '.join(sorted(known))}"


def _bad(message: str) -> HearthError:
    return HearthError(Reason.BAD_SETTING, message)
