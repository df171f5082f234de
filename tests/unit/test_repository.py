"""Checks of the repository:

packages in the wheel, arrows between packages, the README's commands.
"""

import ast
import io
import itertools
import json
import re
import subprocess
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from hearth.cli.main import main

TOP = Path(__file__).resolve().parents[2]
PACKAGES: dict[str, str] = {
    path: str((project / folder).resolve().relative_to(TOP))
    for project in (TOP, TOP / "packaging" / "hearth-client")
    for path, folder in tomllib.loads((project / "pyproject.toml").read_text())["tool"][
        "scikit-build"
    ]["wheel"]["packages"].items()
}

# Which packages a package may import, besides itself, the stubs and what is not Hearth's.
ALLOWED = {
    "cli": {"root", "worker", "converter", "client", "common", "models", "_native"},
    "root": {"worker", "converter", "common", "_native"},
    "worker": {"common", "_native"},
    "common": {"_native"},
    "client": set(),
    "converter": {"models", "common", "_native"},
    "models": {"converter", "_native"},
}


def tracked(*patterns: str) -> list[Path]:
    """Files of the repository, committed or about to be."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        pytest.skip(f"not a git checkout: {found.stderr.strip()}")
    return [TOP / line for line in found.stdout.splitlines() if (TOP / line).is_file()]


def test_every_package_folder_is_in_the_wheel() -> None:
    roots = {
        path.parent
        for path in tracked("*__init__.py")
        if not (path.parent.parent / "__init__.py").exists()
        and path.relative_to(TOP).parts[0] not in ("tests", "examples", "bench")
    }
    assert {str(path.relative_to(TOP)) for path in roots} <= set(PACKAGES.values())


def test_import_path_ends_like_its_folder() -> None:
    for path, folder in PACKAGES.items():
        assert (TOP / folder).is_dir(), folder
        assert path.split("/")[-1] == Path(folder).name


def imported(path: Path) -> set[str]:
    """First-level names under `hearth` that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("hearth.")}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_dependencies_point_down(package: str) -> None:
    folder = PACKAGES[f"hearth/{package}"]
    files = list((TOP / folder).rglob("*.py"))
    assert files, folder
    for path in files:
        wrong = imported(path) - ALLOWED[package] - {package, "v1"}
        assert not wrong, f"{path.relative_to(TOP)} imports {', '.join(sorted(wrong))}"


def test_the_core_knows_no_python_and_no_grpc() -> None:
    for path in tracked("native/include/*", "native/src/*"):
        found = re.search(r"#include <(pybind11|Python|grpc)[^>]*>", path.read_text())
        assert found is None, f"{path.relative_to(TOP)}: {found and found[0]}"


def test_every_test_file_has_a_name_of_its_own() -> None:
    """pytest imports files of tests by their names alone."""
    names = sorted(path.name for path in (TOP / "tests").rglob("test_*.py"))
    assert len(names) == len(set(names)), [n for n in set(names) if names.count(n) > 1]


def test_readme_commands_exist() -> None:
    readme = (TOP / "README.md").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (TOP / "Makefile").read_text(), re.MULTILINE))
    commands = commands_of_the_command_line()
    for target in re.findall(r"^\s*\$?\s*make ([a-z-]+)", readme, re.MULTILINE):
        assert target in targets, f"README says `make {target}`"
    for command in re.findall(r"^\s*\$?\s*(?:\.venv/bin/)?hearth ([a-z]+)", readme, re.MULTILINE):
        assert command in commands, f"README says `hearth {command}`"


@dataclass(frozen=True)
class Ran:
    """Result of a command run in this process."""

    returncode: int
    stdout: str
    stderr: str


def run_hearth(*arguments: str) -> Ran:
    """`hearth` in this process: its output, and how it ended."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return Ran(code, out.getvalue(), err.getvalue())


def commands_of_the_command_line() -> set[str]:
    done = run_hearth("--help")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^  ([a-z]+)  ", done.stdout, re.MULTILINE))


def test_help_lists_every_command_and_each_explains_itself() -> None:
    commands = commands_of_the_command_line()
    assert {
        "worker",
        "root",
        "generate",
        "chat",
        "bench",
        "convert",
        "pull",
        "cluster",
    } <= commands
    for command in sorted(commands):
        done = run_hearth(command, "--help")
        assert done.returncode == 0, f"hearth {command} --help: {done.stderr}"
        assert f"hearth {command}" in done.stdout
        lines = [*done.stdout.splitlines(), ""]
        for line, after in itertools.pairwise(lines):
            # A long option has its help on the next line.
            if re.match(r"^  --[a-z-]+( [A-Z:]+)?$", line):
                assert after.startswith(" " * 15), f"{command}: no help for{line}"


def test_wrong_command_names_those_there_are() -> None:
    done = run_hearth("genrate")
    assert done.returncode == 2
    assert "generate" in done.stderr


def test_stubs_are_generated_and_never_committed() -> None:
    assert not tracked("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def test_sanitizers_are_in_what_make_test_builds() -> None:
    """By what make would run, and by the flags that CMake would build with."""
    ran = subprocess.run(
        ["make", "--dry-run", "--always-make", "test-native"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    presets = json.loads((TOP / "CMakePresets.json").read_text())
    sanitizers = {
        preset["name"]: preset.get("cacheVariables", {}).get("HEARTH_SANITIZE")
        for preset in presets["configurePresets"]
    }
    for preset, wanted in (("asan", "address,undefined"), ("tsan", "thread")):
        assert sanitizers[preset] == wanted
        assert re.search(rf"cmake --preset {preset}\b", ran.stdout)
        assert re.search(rf"cmake --build --preset {preset}\b", ran.stdout)
        assert re.search(rf"ctest --preset {preset}\b", ran.stdout)
        cache = TOP / f"build/native-{preset}/CMakeCache.txt"
        if cache.exists():
            assert f"HEARTH_SANITIZE:UNINITIALIZED={wanted}" in re.sub(
                r"(HEARTH_SANITIZE):[A-Z]+", r"\1:UNINITIALIZED", cache.read_text()
            )
