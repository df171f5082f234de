"""The files of a GGUF model: one, or parts named NAME-00001-of-0000N.gguf (llama-gguf-split).

The first part has the metadata; every part lists its own tensors.
"""

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.readers.gguf_file import GgufFile, GgufTensor, parse
from hearth.converter.shown import shown

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.DOTALL)
_MOST_PARTS = 4096


@dataclass(frozen=True)
class GgufParts:
    """An open model. first: the file with the metadata. tensors: of all files, with their file."""

    first: GgufFile
    files: list[OpenFile]
    tensors: dict[str, tuple[OpenFile, GgufTensor]]

    def close(self) -> None:
        for file in self.files:
            file.close()


def part_names(name: str) -> list[str]:
    """The file names of all parts of the model that `name` is a part of; of one file itself."""
    match = _PART.fullmatch(name)
    count = int(match[3]) if match is not None else 0
    if match is None or not 1 <= int(match[2]) <= count <= _MOST_PARTS:
        return [name]
    return [f"{match[1]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def open_parts(path: Path) -> GgufParts:
    """Open a GGUF model by any one of its files.

    Raises:
        ModelError: a file is damaged, or parts are absent or do not belong together.
    """
    files: list[OpenFile] = []
    try:
        given = OpenFile(path)
        files.append(given)
        gguf = parse_open(given)
        count = _number(gguf, "split.count", 1)
        if count <= 1:
            return GgufParts(gguf, files, {n: (given, t) for n, t in gguf.tensors.items()})
        place = _number(gguf, "split.no", 0)
        paths = _paths(path, place, count)
        parts = []
        for number, each in enumerate(paths):
            if number == place:
                parts.append((given, gguf))
                continue
            file = OpenFile(each)
            files.append(file)
            part = parse_open(file)
            parts.append((file, part))
            found = _number(part, "split.no", 0), _number(part, "split.count", 1)
            if found != (number, count):
                raise ModelError(
                    f"{each} is part {found[0] + 1} of {found[1]} by its metadata, but part "
                    f"{number + 1} of {count} by its name; download it again"
                )
        return GgufParts(parts[0][1], files, _join(path, parts))
    except BaseException:
        for file in files:
            file.close()
        raise


def parse_open(file: OpenFile) -> GgufFile:
    """The metadata and tensor list of an open GGUF file. Raises ModelError."""
    path = file.path
    if file.size < 24:
        raise ModelError(f"{path} has {file.size} bytes; that is too short for a GGUF file")
    try:
        with mmap.mmap(file.fileno(), file.size, access=mmap.ACCESS_READ) as mapped:
            with memoryview(mapped) as view:
                gguf = parse(path, view)
        now = file.current()
    except (OSError, ValueError) as error:  # ValueError: it is shorter by now
        raise ModelError(f"cannot read {path}: {error}") from error
    if now != file.state:
        raise file.changed(now)
    return gguf


def _paths(path: Path, place: int, count: int) -> list[Path]:
    """All parts' paths, in order; `path` is number `place`, from 0."""
    names = part_names(path.name)
    if len(names) != count or not 0 <= place < count or names[place] != path.name:
        ending = f"-{place + 1:05}-of-{count:05}.gguf"
        raise ModelError(
            f"{path} is part {place + 1} of {count} of a model, so its name must end in {ending}; "
            "rename all parts to the names they were published under"
        )
    paths = [path.with_name(name) for name in names]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise ModelError(
            f"{path} is one of {count} parts of a model, and {len(missing)} are not beside it: "
            f"{', '.join(missing[:4])}{more}; download them too"
        )
    return paths


def _join(
    path: Path, parts: list[tuple[OpenFile, GgufFile]]
) -> dict[str, tuple[OpenFile, GgufTensor]]:
    tensors: dict[str, tuple[OpenFile, GgufTensor]] = {}
    for file, part in parts:
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise ModelError(f"tensor {name} is in {tensors[name][0].path} and in {file.path}")
            tensors[name] = file, tensor
    total = _number(parts[0][1], "split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ModelError(
            f"{path}: the {len(parts)} parts hold {len(tensors)} tensors, and the first says "
            f"{total}; they are not of one model"
        )
    return tensors


def _number(gguf: GgufFile, key: str, default: int) -> int:
    value: Any = gguf.values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"{gguf.path}: {key} is {shown(value)}; a whole number is needed")
    return value
