"""Download of a model from the Hugging Face hub: weights, settings and tokenizer only."""

import re
from pathlib import Path

from hearth.converter.errors import ModelError

# The files of a Llama directory. Pickled weights (.bin, .pth) and code are never fetched.
_DIRECTORY_PATTERNS = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*\.gguf", re.ASCII)


def pull(name: str, revision: str | None = None) -> Path:
    """Download a model into the hub's own cache; returns a path for `open_model`.

    name: "owner/model" for a Hugging Face directory, "owner/model/file.gguf" for one GGUF file.
    Files in the cache are not fetched again; an interrupted download is resumed.

    Raises:
        ModelError: no such model or file, no permission, or no network; the message says which.
    """
    repository, file = _split(name)
    import huggingface_hub
    from huggingface_hub import errors

    patterns = _DIRECTORY_PATTERNS if file is None else [file]
    try:
        directory = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=patterns
            )
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} requires consent to its licence: accept it on its page, then log in "
            "with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no model {repository!r}, or it is private") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repository} has no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{repository} is not in the cache and the hub cannot be reached; check the network"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise ModelError(f"{repository} cannot be downloaded: {error}") from error
    path = directory if file is None else directory / file
    wanted = path / "config.json" if file is None else path
    if not wanted.is_file():
        hint = "" if file else "; for GGUF files give owner/model/file.gguf"
        raise ModelError(f"{repository} has no {wanted.name}{hint}")
    return path


def _split(name: str) -> tuple[str, str | None]:
    owner, _, rest = name.partition("/")
    model, _, file = rest.partition("/")
    repository = f"{owner}/{model}"
    if not _NAME.fullmatch(repository) or (file and not _FILE.fullmatch(file)) or ".." in name:
        raise ModelError(
            f"{name!r} is not the name of a model; give owner/model, or owner/model/file.gguf"
        )
    return repository, file or None
