"""A worker needs none of the libraries that read models and tokenizers."""

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import WorkerProcess, clean_environ, hearth

from hearth.cli.main import ROOT_LIBRARIES

TOP = Path(__file__).resolve().parents[2]
# Distributions of the extra `root` import under their own names, but for these.
IMPORTED = {"pyyaml": "yaml"}
LIBRARIES = [
    IMPORTED.get(requirement.partition(">=")[0], requirement.partition(">=")[0])
    for requirement in tomllib.loads((TOP / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["root"]
]


@pytest.fixture
def without_libraries(tmp_path: Path) -> dict[str, str]:
    """An environment in which every library of the extra `root` is absent."""
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in LIBRARIES:
        (absent / f"{name}.py").write_text(
            f'raise ModuleNotFoundError("No module named {name!r}", name="{name}")\n'
        )
    return {"PYTHONPATH": str(absent)}


def test_the_libraries_are_absent(without_libraries: dict[str, str]) -> None:
    assert {"tokenizers", "sentencepiece", "tiktoken"} <= set(LIBRARIES)
    for name in LIBRARIES:
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            env=clean_environ(without_libraries),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert f"No module named {name!r}" in done.stderr


def test_a_worker_without_them_computes_its_share(
    start_worker: Callable[..., WorkerProcess], without_libraries: dict[str, str]
) -> None:
    arguments = ["generate", "--model", "demo", "--prompt", "Once", "--max-tokens", "5"]
    expected = hearth(*arguments)
    assert expected.returncode == 0, expected.stderr
    worker = start_worker(environ=without_libraries)
    done = hearth(*arguments, "--workers", worker.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout


def test_the_command_line_lists_all_of_them() -> None:
    assert set(LIBRARIES) == ROOT_LIBRARIES


def test_a_command_that_needs_them_names_the_extra(without_libraries: dict[str, str]) -> None:
    done = hearth("generate", "--model", "demo", "--prompt", "Once", environ=without_libraries)
    assert done.returncode == 1
    assert "pip install 'hearth[root]'" in done.stderr
    assert "Traceback" not in done.stderr
