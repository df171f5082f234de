"""Fetches the page's libraries from npm's registry, by version and SHA-256 digest.

    python packaging/page/vendor.py            fetch them again, with `npm pack`
    python packaging/page/vendor.py --check    compare the files of the checkout, without network

A new version: change it here, run with --digests, compare what changed, and write the digests down.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "services/root/api/http/page/static/vendor"


@dataclass(frozen=True)
class Package:
    """A package of npm. files: path in it -> (path in FOLDER, SHA-256)."""

    name: str
    version: str
    files: dict[str, tuple[str, str]]


PACKAGES = (
    Package(
        "lit-html",
        "3.3.3",
        {
            "lit-html.js": (
                "lit-html.js",
                "b878e7f95dec8a9b6e9b217faca6b6a11bad82ebc44c0caa77419ed83edd81f2",
            ),
            "directive.js": (
                "directive.js",
                "3344c4f41c69cd0701d3937e8f9ef90bd845614bf6456d0b8314b7c51d415b9d",
            ),
            "directive-helpers.js": (
                "directive-helpers.js",
                "f7fb1154b8f72ed2cc08b05eaeed71c99270e9ad2d48620ed24688a1af4c2b62",
            ),
            "directives/repeat.js": (
                "directives/repeat.js",
                "083140026ecd8665fedd15b17769f9d516252a9f1502f1e91e6967686ee82626",
            ),
            "LICENSE": (
                "lit-html.LICENSE",
                "2b66f9390afde29edfe4314daff93f01fb182e1178053e228120178987e5db75",
            ),
        },
    ),
    Package(
        "marked",
        "18.2.1",
        {
            "lib/marked.esm.js": (
                "marked.esm.js",
                "5371fea86fd0656b4fc7bea7c94c663109d82789b69433eeee78d42895aa44de",
            ),
            "LICENSE": (
                "marked.LICENSE",
                "8e3a3f82f59a60958f56ca08f445647c32a4733dc7ca6c2c46f6eb898471ab9c",
            ),
        },
    ),
    Package(
        "dompurify",
        "3.4.18",
        {
            "dist/purify.min.js": (
                "purify.min.js",
                "8053ee2a6a09f9d50f7fcd6fb7f07072f52c7f3fa9aa12147cab4feaf65ee970",
            ),
            # Apache-2.0: of the two licences that its authors offer, the one that is used here.
            "LICENSE": (
                "dompurify.LICENSE",
                "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
            ),
        },
    ),
)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(package: Package, folder: Path) -> dict[str, bytes]:
    """The wanted files of a package: path in it -> contents."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        cwd=folder, check=True, capture_output=True, text=True,
    ).stdout.split()[-1]  # fmt: skip
    found: dict[str, bytes] = {}
    with tarfile.open(folder / packed) as archive:
        for path in package.files:
            member = archive.extractfile(f"package/{path}")
            if member is None:
                sys.exit(f"vendor: {packed} has no {path}")
            found[path] = member.read()
    return found


def check() -> list[str]:
    """Complaints about the files of the checkout."""
    problems = []
    wanted = {file: want for package in PACKAGES for file, want in package.files.values()}
    for file, want in wanted.items():
        path = FOLDER / file
        have = digest(path.read_bytes()) if path.is_file() else "absent"
        if have != want:
            problems.append(f"{file} is {have}, expected {want}")
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    return problems + [f"{file} is not listed here" for file in sorted(found - wanted.keys())]


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        problems = check()
        for problem in problems:
            print(f"vendor: {problem}", file=sys.stderr)
        return 1 if problems else 0
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            found = fetch(package, Path(folder))
        for path, data in found.items():
            file, want = package.files[path]
            if arguments == ["--digests"]:
                print(f"{digest(data)}  {package.name} {package.version} {path}")
            elif digest(data) != want:
                sys.exit(f"vendor: {package.name} {path} is {digest(data)}, expected {want}")
            else:
                (FOLDER / file).parent.mkdir(parents=True, exist_ok=True)
                (FOLDER / file).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
