"""Lays out the package for type checkers, then runs pyright and mypy over it.

The folders of the checkout are not those of the import paths (services/root is hearth.root). So the
package is laid out in build/typing with links, by the same tables that the wheels are made from.
Editors read the same folder: [tool.pyright] in pyproject.toml names it.

    check_types.py             lay out, then run both
    check_types.py --lay-out   lay out only; `make` does so when it installs
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
FARM = TOP / "build" / "typing"
PROJECTS = (TOP, TOP / "packaging" / "hearth-client")
# What pyright reads, as [tool.pyright] has it.
CHECKED = ("services", "client", "converter", "cli")


def link(at: Path, target: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(target)


def lay_out() -> dict[str, str]:
    """Link build/typing/hearth/... to the sources and the generated stubs; path -> source."""
    stubs = Path(sysconfig.get_path("platlib")) / "hearth" / "v1"
    if not stubs.is_dir():
        sys.exit(f"check_types: no generated stubs in {stubs}: run `make lint`")
    shutil.rmtree(FARM, ignore_errors=True)
    sources: dict[str, str] = {}
    for project in PROJECTS:
        table = tomllib.loads((project / "pyproject.toml").read_text())
        packages: dict[str, str] = table["tool"]["scikit-build"]["wheel"]["packages"]
        for path, folder in packages.items():
            source = (project / folder).resolve()
            link(FARM / path, source)
            sources[f"{(FARM / path).relative_to(TOP)}/"] = f"{source.relative_to(TOP)}/"
    link(FARM / "hearth" / "_native.pyi", TOP / "native" / "bindings" / "_native.pyi")
    link(FARM / "hearth" / "v1", stubs)
    return sources


def run_mypy(sources: dict[str, str]) -> int:
    """Run mypy over the package and the tests; its worst exit status."""
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


def run_pyright() -> int:
    """Count the `hearth` imports that pyright does not resolve, as an editor would; 1 if any."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--level", "error"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        sys.exit(
            f"check_types: pyright failed (`make lint` installs it): {done.stdout}{done.stderr}"
        )
    files = sum(len(list((TOP / folder).rglob("*.py"))) for folder in CHECKED)
    analyzed = report["summary"]["filesAnalyzed"]
    if analyzed < files:
        sys.exit(f"check_types: pyright read {analyzed} files of {files}: see [tool.pyright]")
    missing = []
    for found in report["generalDiagnostics"]:
        place = f"{Path(found['file']).relative_to(TOP)}:{found['range']['start']['line'] + 1}"
        if '"hearth' in found["message"]:
            missing.append(f"{place}: {found['message']}")
    print(*missing, sep="\n", end="\n" if missing else "")
    print(f"pyright: {len(missing)} unresolved hearth imports in {analyzed} files")
    return 1 if missing else 0


def main() -> int:
    sources = lay_out()
    if "--lay-out" in sys.argv[1:]:
        return 0
    return max(run_pyright(), run_mypy(sources))


if __name__ == "__main__":
    sys.exit(main())
