"""The check before a release: tag, versions, addresses and change log agree."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def release_notes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notes", TOP / ".ci" / "release_notes.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[..., Path]:
    def make(
        version: str = "1.2.0", client: str = "1.2.0", host: str = "hearth.org", changes: str = ""
    ) -> Path:
        (tmp_path / "packaging" / "hearth-client").mkdir(parents=True)
        (tmp_path / "pyproject.toml").write_text(
            f'[project]\nversion = "{version}"\nurls = {{Issues = "https://{host}/"}}\n'
        )
        (tmp_path / "packaging" / "hearth-client" / "pyproject.toml").write_text(
            f'[project]\nversion = "{client}"\n'
        )
        (tmp_path / "CHANGELOG.md").write_text(
            changes
            or "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-02\n\n### Added\n\n- A.\n\n"
            "## [1.1.0]\n\n- Old.\n"
        )
        return tmp_path

    return make


def test_notes_are_the_section_of_the_version(
    release_notes: ModuleType, checkout: Callable[..., Path]
) -> None:
    assert release_notes.notes("v1.2.0", checkout()) == "### Added\n\n- A."


@pytest.mark.parametrize(
    ("tag", "wrong", "message"),
    [
        ("1.2.0", {}, "is not a version like"),
        ("v1.2.0; rm", {}, "is not a version like"),
        ("v1.3.0", {}, "pyproject.toml has version 1.2.0"),
        ("v1.2.0", {"client": "1.1.0"}, "packaging/hearth-client/pyproject.toml has version 1.1.0"),
        ("v1.2.0", {"host": "hearth.example"}, "no public address for Issues"),
        ("v1.2.0", {"changes": "## [Unreleased]\n\n- A.\n"}, r"no section \[1.2.0\]"),
        ("v1.2.0", {"changes": "## [1.2.0]\n\n## [1.1.0]\n- A.\n"}, r"no section \[1.2.0\]"),
    ],
)
def test_what_disagrees_is_named(
    release_notes: ModuleType,
    checkout: Callable[..., Path],
    tag: str,
    wrong: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        release_notes.notes(tag, checkout(**wrong))
