"""Names of models on the Hugging Face hub, and the hub's cache on this machine. No network.

A name is OWNER/MODEL, OWNER/MODEL:TYPE for one GGUF type of a repository, or OWNER/MODEL/FILE.gguf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hearth.converter.errors import ModelError
from hearth.converter.readers.gguf_parts import part_names

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILE = re.compile(r"[\w.+-]+(/[\w.+-]+)*\.gguf", re.ASCII)
_TAG = re.compile(r"[\w.+-]{1,64}", re.ASCII)
_PART = re.compile(r"-\d{5}-of-\d{5}$", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}", re.ASCII)
# A type at the end of a file's name: Q4_K_M, IQ3_XXS, BF16, UD-Q4_K_XL.
_TYPE = re.compile(r"(?:^|[-._/])((?:UD-)?I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32|FP16)$", re.I)
_FOLDER_PREFIX = "models--"
_MOST_LISTED = 24


@dataclass(frozen=True, slots=True)
class HubName:
    """A model's name on the hub. tag: "Q4_K_M"; file: a path in the repository."""

    repository: str
    tag: str = ""
    file: str = ""

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + f"/{self.file}".rstrip("/")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """One GGUF model of a repository: its parts in order, mostly one."""

    files: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Its type, such as Q4_K_M; the file's name where it tells none."""
        stem = _PART.sub("", self.files[0].removesuffix(".gguf"))
        found = _TYPE.search(stem)
        return found[1].upper() if found else stem


def parse_name(name: str) -> HubName:
    """Read a model's name. Raises ModelError with the forms that a name can have."""
    owner, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    model, _, tag = model.partition(":")
    repository = f"{owner}/{model}"
    valid = (
        _REPOSITORY.fullmatch(repository)
        and ".." not in name
        and (not file or (_FILE.fullmatch(file) and not tag))
        and (not tag or _TAG.fullmatch(tag))
        and name == str(HubName(repository, tag, file))
    )
    if not valid:
        raise ModelError(
            f"{name!r} is not the name of a model on the hub; give OWNER/MODEL, or for GGUF files "
            "OWNER/MODEL:Q4_K_M or OWNER/MODEL/FILE.gguf"
        )
    return HubName(repository, tag, file)


def gguf_models(files: Sequence[str]) -> list[GgufModel]:
    """The GGUF models among a repository's files; parts of one belong together.

    Image encoders and imatrix data beside the models are left out. Raises ModelError for a model
    with missing parts.
    """
    models: dict[str, GgufModel] = {}
    known = set(files)
    for file in sorted(files):
        name = file.rsplit("/", 1)[-1].lower()
        if not name.endswith(".gguf") or name.startswith("mmproj") or "imatrix" in name:
            continue
        parts = _parts(file)
        models.setdefault(parts[0], GgufModel(parts if known.issuperset(parts) else (file,)))
    return list(models.values())


def choose_gguf(name: HubName, models: Sequence[GgufModel]) -> GgufModel:
    """The GGUF model that a name means. Raises ModelError listing those there are."""
    chosen = list(models)
    if name.file:
        chosen = [model for model in models if name.file in model.files]
    elif name.tag:
        tag = name.tag.upper()
        chosen = [model for model in models if model.kind == tag] or [
            model for model in models if tag in model.files[0].upper()
        ]
    if len(chosen) == 1:
        return _complete(chosen[0])
    kinds = [model.kind for model in models]
    shown = ", ".join(kinds[:_MOST_LISTED]) + ", ..." * (len(kinds) > _MOST_LISTED)
    if not models:
        raise ModelError(f"{name.repository} has no GGUF file")
    if not chosen:
        raise ModelError(
            f"{name.repository} has no {name.file or name.tag}; its GGUF models are {shown}"
        )
    raise ModelError(
        f"{name} means {len(chosen)} GGUF models; name one, as in "
        f"{name.repository}:{chosen[0].kind}: {shown}"
    )


def _parts(file: str) -> tuple[str, ...]:
    """The paths of all parts of the model that a file belongs to."""
    folder = file[: file.rfind("/") + 1]
    return tuple(folder + name for name in part_names(file.removeprefix(folder)))


def _complete(model: GgufModel) -> GgufModel:
    parts = len(_parts(model.files[0]))
    if len(model.files) != parts:
        raise ModelError(f"{model.files[0]} is one of {parts} parts, and others are missing")
    return model


def cache_directory() -> Path:
    """The hub's cache: HF_HUB_CACHE, or below HF_HOME or ~/.cache/huggingface."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_snapshot(repository: str) -> Path | None:
    """The directory of a downloaded repository: its main branch, or its only revision."""
    folder = cache_directory() / f"{_FOLDER_PREFIX}{repository.replace('/', '--')}"
    snapshots = folder / "snapshots"
    try:
        with (folder / "refs" / "main").open() as file:
            revision = file.read(64).strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    if _REVISION.fullmatch(revision) and (snapshots / revision).is_dir():
        return snapshots / revision
    found = [path for path in snapshots.glob("*") if path.is_dir()]
    return found[0] if len(found) == 1 else None


def cached_model(source: str) -> Path | None:
    """The path of a downloaded model by its name on the hub; None if it is not in the cache.

    Raises ModelError where its repository is in the cache without the GGUF file that is meant.
    """
    try:
        name = parse_name(source)
    except ModelError:
        return None
    snapshot = cached_snapshot(name.repository)
    if snapshot is None:
        return None
    if not name.file and not name.tag and (snapshot / "config.json").is_file():
        return snapshot
    models = gguf_models(_files(snapshot))
    if not models:
        return None
    try:
        return snapshot / choose_gguf(name, models).files[0]
    except ModelError as error:
        raise ModelError(
            f"in the Hugging Face cache: {error}; `hearth pull {source}` downloads another"
        ) from None


def cached_names() -> Iterator[tuple[str, Path]]:
    """(name, path) of every model in the cache, in order; GGUF models by their types."""
    for folder in sorted(cache_directory().glob(f"{_FOLDER_PREFIX}*--*")):
        repository = folder.name.removeprefix(_FOLDER_PREFIX).replace("--", "/", 1)
        snapshot = cached_snapshot(repository)
        if snapshot is None:
            continue
        models = gguf_models(_files(snapshot))
        kinds = [model.kind for model in models]
        for model in models:
            if kinds.count(model.kind) == 1 and _TAG.fullmatch(model.kind):
                yield f"{repository}:{model.kind}", snapshot / model.files[0]
            else:
                yield f"{repository}/{model.files[0]}", snapshot / model.files[0]
        if (snapshot / "config.json").is_file():
            yield repository, snapshot


def _files(snapshot: Path) -> list[str]:
    return [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf") if path.is_file()]
