"""Check of a GGUF model by the headers of its files, before the rest of them is downloaded.

The headers are put into sparse files of the whole size. So the reader of GGUF files itself says
what it would say of the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.readers.gguf import open_gguf
from hearth.converter.readers.gguf_parts import parse_open

# Bytes of each file that are fetched, until its header is whole: mostly 6 MiB of vocabulary.
_STEPS = (1 << 20, 8 << 20, 32 << 20, 256 << 20)

# Called with (file, first byte, end): those bytes of a file; fewer where they cannot be had.
Fetch = Callable[[str, int, int], bytes]


def check_headers(files: Mapping[str, int], fetch: Fetch) -> None:
    """Open a model by its headers.

    files: the parts of one model in order, with their sizes. Raises ModelError, which names files
    by their names only, where Hearth does not run the model. A header that cannot be had is no
    error: the whole file is checked once it is there.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {file: Path(folder) / PurePosixPath(file).name for file in files}
        try:
            if not all(_lay_out(paths[file], file, size, fetch) for file, size in files.items()):
                return
        except OSError:  # no room for the headers, or no files as large
            return
        try:
            open_gguf(next(iter(paths.values())), None).close()
        except ModelError as error:
            raise ModelError(str(error).replace(f"{folder}/", "")) from None


def _lay_out(path: Path, file: str, size: int, fetch: Fetch) -> bool:
    """Make a file of `size` bytes with its header. False if the header is not to be had."""
    have = 0
    with path.open("wb") as out:
        out.truncate(size)
        for step in _STEPS:
            data = fetch(file, have, min(step, size))
            out.write(data)
            out.flush()
            have += len(data)
            if have < min(step, size):
                return False
            if have == size or _is_whole(path, have):
                return True
    return False


def _is_whole(path: Path, have: int) -> bool:
    """True if the first `have` bytes of a file have its header, or it is not a GGUF file."""
    file = OpenFile(path)
    try:
        return parse_open(file).header_size <= have
    except ModelError:
        # The zeros behind what is here are no header; a wrong beginning stays wrong.
        with path.open("rb") as data:
            return data.read(4) != b"GGUF"
    finally:
        file.close()
