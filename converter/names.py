"""Names of models, as requests give them."""

import re
from pathlib import Path

# A repository's folder in the Hugging Face cache, and a revision's in it.
_CACHED = re.compile(r"models--(.+)")
_SNAPSHOTS = "snapshots"


def names_of(source: str, path: Path, stored: str) -> list[str]:
    """The names that a model answers to; the first is the one that lists show.

    source: as it was given on the command line; path: what was opened for it; stored: the name in
    its files. A model that was given by name is called so, one in the Hugging Face cache as its
    repository is; any other keeps the name in its files, and its file's or directory's name means
    it too.
    """
    by_name = not Path(source).exists()
    found = [source] if by_name else []
    repository = _repository(path)
    if repository:
        found.append(repository)
    found.append(stored)
    found.append(path.stem if path.suffix in (".gguf", ".m") else path.name)
    if by_name:
        found.append(source.partition(":")[0])
    return list(dict.fromkeys(name for name in found if name))


def _repository(path: Path) -> str:
    """OWNER/MODEL of a path in the Hugging Face cache; "" elsewhere."""
    for folder in path.parents:
        cached = _CACHED.fullmatch(folder.parent.name) if folder.name == _SNAPSHOTS else None
        if cached is not None:
            return cached[1].replace("--", "/", 1)
    return ""


def plain(name: str) -> str:
    """A name as names are compared: without case, the tag ":latest" and an owner ("owner/")."""
    return name.lower().removesuffix(":latest").rpartition("/")[2]
