"""Download of a model from the Hugging Face hub: checks first, then weights and tokenizer only."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_config, read_json
from hearth.converter.hub import HubName, choose_gguf, gguf_models, parse_name
from hearth.converter.pull_headers import check_headers

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The files of a directory beside its weights. Pickled weights (.bin, .pth) and code are never
# fetched.
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "tekken.json",
    "*.tiktoken",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
)
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# The hub's answer to a question, seconds.
_TIMEOUT = 10.0
# HTTP's status of a part of a file.
_PARTIAL = 206
_MAX_INDEX_BYTES = 16 << 20

# Called with (file, its bytes) before it is downloaded.
Announce = Callable[[str, int], None]


class HubUnreachable(ModelError):  # noqa: N818
    """No answer from the hub."""


@dataclass(frozen=True, slots=True)
class Download:
    """A model on the hub that Hearth can run: its files with their sizes, in bytes."""

    repository: str
    revision: str | None
    files: dict[str, int]
    # The path for `open_model` in the snapshot's directory.
    path: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def find(name: str, revision: str | None = None) -> Download:
    """Ask the hub for a model, and check what can be known before its weights are here.

    Raises:
        ModelError: no such model, no permission, no network, or a model that Hearth does not run;
            the message says which, and what to do.
    """
    wanted = parse_name(name)
    with _errors(wanted.repository, revision):
        from huggingface_hub import HfApi

        api = HfApi(library_name="hearth")
        info = api.model_info(
            wanted.repository, revision=revision, files_metadata=True, timeout=_TIMEOUT
        )
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        if wanted.file or wanted.tag or "config.json" not in sizes:
            return _gguf(wanted, revision, sizes)
        return _directory(api, wanted, revision, sizes)


def fetch(download: Download, announce: Announce = lambda file, size: None) -> Path:
    """Download what is not in the hub's cache yet; the path for `open_model`.

    An interrupted download is resumed. announce: called before each file. Raises ModelError, also
    where the disk has no room for it.
    """
    with _errors(download.repository, download.revision):
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        missing = {
            file: size
            for file, size in download.files.items()
            if not isinstance(
                try_to_load_from_cache(download.repository, file, revision=download.revision), str
            )
        }
        _check_room(download, sum(missing.values()))
        path = Path()
        for file, size in download.files.items():
            if file in missing:
                announce(file, size)
            found = hf_hub_download(
                download.repository,
                file,
                revision=download.revision,
                tqdm_class=_bar_class(),
                library_name="hearth",
            )
            if file == download.path:
                path = Path(found)
    return path if path.suffix == ".gguf" else path.parent


def pull(name: str, revision: str | None = None) -> Path:
    """`find` and `fetch` at once."""
    return fetch(find(name, revision))


def _gguf(name: HubName, revision: str | None, sizes: dict[str, int]) -> Download:
    models = gguf_models(list(sizes))
    if not models and not name.file and not name.tag:
        raise ModelError(
            f"{name.repository} has neither a config.json nor a GGUF file: it is not a language "
            "model that Hearth can read"
        )
    chosen = choose_gguf(name, models)
    files = {file: sizes[file] for file in chosen.files}
    try:
        check_headers(files, functools.partial(_bytes_of, name.repository, revision))
    except ModelError as error:
        raise ModelError(f"{name.repository}: {error}; nothing was downloaded") from None
    return Download(name.repository, revision, files, chosen.files[0])


def _bytes_of(repository: str, revision: str | None, file: str, first: int, end: int) -> bytes:
    """Bytes [first, end) of a file on the hub; none from a server that does not send parts."""
    from huggingface_hub import hf_hub_url

    # Public by its documentation, and to no type checker.
    utils: Any = importlib.import_module("huggingface_hub.utils")
    if first >= end:
        return b""
    headers: dict[str, str] = utils.build_hf_headers(library_name="hearth")
    headers |= {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
    url = hf_hub_url(repository, file, revision=revision)
    data = bytearray()
    with utils.get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
        utils.hf_raise_for_status(response)
        if response.status_code != _PARTIAL:
            return b""
        for piece in response.iter_bytes():
            data += piece
            if len(data) >= end - first:
                break
    return bytes(data[: end - first])


def _directory(api: HfApi, name: HubName, revision: str | None, sizes: dict[str, int]) -> Download:
    """A Hugging Face directory; refused here for its architecture or the form of its weights."""
    with tempfile.TemporaryDirectory() as folder:

        def settings(file: str) -> Path:
            return Path(
                api.hf_hub_download(
                    name.repository,
                    file,
                    revision=revision,
                    local_dir=folder,
                    tqdm_class=_bar_class(),
                )
            )

        try:
            read_config(settings("config.json").parent)
        except ModelError as error:
            problem = str(error).removeprefix(f"{Path(folder) / 'config.json'}: ")
            raise ModelError(f"{name.repository}: {problem}; nothing was downloaded") from None
        if _INDEX in sizes:
            weight_map = read_json(settings(_INDEX), _MAX_INDEX_BYTES).get("weight_map")
            shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
            weights = [_INDEX, *sorted(map(str, shards))]
        else:
            weights = [_SINGLE]
    absent = [file for file in weights if file not in sizes]
    if absent:
        raise ModelError(f"{name.repository} {_without_weights(sizes, absent)}")
    found = [
        file for file in sizes if any(fnmatch.fnmatchcase(file, wanted) for wanted in _SETTINGS)
    ]
    files = {file: sizes[file] for file in (*found, *weights)}
    return Download(name.repository, revision, files, "config.json")


def _without_weights(sizes: dict[str, int], absent: list[str]) -> str:
    if models := gguf_models(list(sizes)):
        kinds = ", ".join(model.kind for model in models)
        return f"has its weights as GGUF files: name one of {kinds}, as in OWNER/MODEL:TYPE"
    pickled = [file for file in sizes if file.endswith((".bin", ".pth", ".pt"))]
    if pickled:
        return (
            f"has its weights as pickled files only ({pickled[0]}), which Hearth never reads: they "
            "can hold programs. Look for a repository with safetensors or GGUF files; nothing was "
            "downloaded"
        )
    return f"has no {absent[0]}: its weights are not there"


def _check_room(download: Download, needed: int) -> None:
    from hearth.converter.hub import cache_directory

    directory = cache_directory()
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise ModelError(
            f"{download.repository} needs {needed / 1e9:.1f} GB on the disk of {directory}, which "
            f"has {free / 1e9:.1f} GB free: free some, or set HF_HOME to a folder on another disk"
        )


def _bar_class() -> Any:
    """Progress bars of a terminal that leave nothing behind; none elsewhere."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg] # tqdm is generic in its stubs only
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)  # of the hub's own class
            shown = sys.stderr is not None and sys.stderr.isatty()
            super().__init__(*arguments, **options | {"leave": False, "disable": not shown})

    return Bar


def _login() -> str:
    """The command that logs in to the hub, where it is installed beside this Python."""
    command = Path(sys.executable).with_name("hf")
    return f"`{command if command.exists() else 'hf'} auth login`"


@contextmanager
def _errors(repository: str, revision: str | None) -> Iterator[None]:
    """Errors of the hub and the network as ModelError, each with what to do."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise ModelError(
            f"{repository} is gated: accept its licence at {endpoint}/{repository}, make a token "
            f"at {endpoint}/settings/tokens, then log in with {_login()} or set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"the hub has no model {repository!r}, or it is private: check the spelling, or log in "
            f"with {_login()} or HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{repository} has no revision {revision!r}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        advice = "; try again later" if status is not None and status >= 500 else ""
        problem = f"the hub answers with an error for {repository} (HTTP {status}){advice}"
        raise ModelError(problem) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{repository}: {error}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE")
        why = "HF_HUB_OFFLINE is set" if offline else _reason(error)
        raise _unreachable(endpoint, why) from error
    except (getattr(errors, "HTTPError", OSError), OSError) as error:  # of the HTTP library
        if isinstance(error, OSError) and error.filename:
            problem = f"{repository} cannot be written: {error.filename}: {error.strerror}"
            raise ModelError(problem) from error
        raise _unreachable(endpoint, _reason(error)) from error


def _unreachable(endpoint: str, why: str) -> HubUnreachable:
    return HubUnreachable(
        f"the hub at {endpoint} cannot be reached: {why}; check the network, or HF_ENDPOINT"
    )


def _reason(error: BaseException) -> str:
    """The innermost cause, in a line."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return " ".join(str(error).split()) or type(error).__name__
