"""Packages, images and actions of others: complete, and by digest or commit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parents[2]
DOCKER = TOP / "deploy" / "docker"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)$")


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, str]:
    """Versions by package; each line must be a version and digests, and nothing else."""
    text = (DOCKER / f"{name}.lock").read_text().replace(" \\\n   ", "")
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pin = _PIN.match(line)
            assert pin, line
            found[canonicalize_name(pin[1])] = pin[2]
    return found


def wanted(name: str) -> list[Requirement]:
    ours, client = project(TOP), project(TOP / "packaging" / "hearth-client")
    if name == "build":
        texts = [*ours["build-system"]["requires"], *client["build-system"]["requires"]]
    else:
        texts = [*ours["project"]["dependencies"], *client["project"]["dependencies"]]
        texts += ours["project"]["optional-dependencies"]["root"]
    return [Requirement(text) for text in texts if not text.startswith("hearth-client")]


@pytest.mark.parametrize("name", ["run", "build"])
def test_the_lock_has_what_the_project_asks_for(name: str) -> None:
    """`make lock` renews it."""
    versions = locked(name)
    for requirement in wanted(name):
        if requirement.marker is None or requirement.marker.evaluate():
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (str(requirement), version)


def test_the_image_takes_nothing_else() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    installs = re.findall(r"pip(?: --python \S+)? install (.*)", text)
    assert len(installs) == 3
    for words in installs:
        assert "--require-hashes -r /locks/" in words or "--no-deps /wheels/" in words


def test_images_of_others_are_named_by_digest() -> None:
    """Hearth's own images and a base image are variables: `HEARTH_IMAGE`, `BASE`."""
    files = [path for path in (TOP / "deploy").rglob("*") if path.suffix in (".yaml", ".yml")]
    found: dict[str, str] = {}
    for path in files:
        for image in re.findall(r"^\s*image: *(\S.*)$", path.read_text(), re.MULTILINE):
            found[image] = path.name
    ours = {
        "${HEARTH_IMAGE:-hearth}",
        "${HEARTH_VULKAN_IMAGE:-hearth-vulkan}",
        '{{ include "hearth.image" . }}',
        '{{ include "hearth.nodeImage" (list . $root) }}',
        '{{ include "hearth.nodeImage" (list . $worker) }}',
    }
    assert ours <= found.keys()
    others = found.keys() - ours
    assert len(others) == 2
    for image in others:
        assert re.fullmatch(r"\$\{\w+:-[\w./-]+:[\w.]+@sha256:[0-9a-f]{64}\}", image), image
    for path in (TOP / "deploy").rglob("*Dockerfile*"):
        bases = re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
        assert bases
        assert set(bases) == {"${BASE}"}, path


def test_actions_are_named_by_commit() -> None:
    uses = [
        (path.name, line)
        for path in (TOP / ".github" / "workflows").glob("*.yml")
        for line in re.findall(r"uses: *(.*)", path.read_text())
        if not line.startswith("./")
    ]
    assert uses
    for name, line in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", line), (name, line)
