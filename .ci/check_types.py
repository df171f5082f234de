"""Runs mypy over the package and its tests.

The folders of the checkout are not those of the import paths (services/root is hearth.root), so the
package is first laid out in build/typing with links, by the same table that the wheel is made from.
"""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
FARM = TOP / "build" / "typing"


def link(at: Path, target: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    if at.is_symlink():
        at.unlink()
    at.symlink_to(target)


def lay_out() -> dict[str, str]:
    """Links build/typing/hearth/... to the sources and the generated stubs; path -> source."""
    table = tomllib.loads((TOP / "pyproject.toml").read_text())
    packages: dict[str, str] = table["tool"]["scikit-build"]["wheel"]["packages"]
    for path, folder in packages.items():
        link(FARM / path, TOP / folder)
    link(FARM / "hearth" / "_native.pyi", TOP / "native" / "bindings" / "_native.pyi")
    stubs = Path(sysconfig.get_path("platlib")) / "hearth" / "v1"
    if not stubs.is_dir():
        sys.exit(f"check_types: no generated stubs in {stubs}: install the package first")
    link(FARM / "hearth" / "v1", stubs)
    return {f"{(FARM / path).relative_to(TOP)}/": f"{folder}/" for path, folder in packages.items()}


def main() -> int:
    sources = lay_out()
    environment = os.environ | {"MYPYPATH": f"{FARM}{os.pathsep}{TOP / 'tests'}"}
    worst = 0
    for what in (["-p", "hearth"], ["tests"]):
        command = [sys.executable, "-m", "mypy", "--no-error-summary", *what]
        done = subprocess.run(
            command, cwd=TOP, env=environment, capture_output=True, text=True, check=False
        )
        worst = max(worst, done.returncode)
        output = done.stdout + done.stderr
        for linked, source in sources.items():
            output = output.replace(linked, source)
        sys.stdout.write(output)
    return worst


if __name__ == "__main__":
    sys.exit(main())
