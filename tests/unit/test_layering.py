"""The arrows between the root's sub-packages point down, and its pure ones stay pure."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
ROOT = TOP / "services" / "root"

# What each sub-package or module of hearth.root may import of the others; itself always.
ARROWS: Mapping[str, frozenset[str]] = {
    "settings": frozenset(),
    "scheduling": frozenset(),
    "membership": frozenset(),
    "planning": frozenset({"settings"}),
    "discovery": frozenset({"settings"}),
    "engine": frozenset({"scheduling"}),
    "status": frozenset({"membership", "planning", "settings"}),
    "cluster": frozenset({"engine", "membership", "planning", "scheduling", "settings", "status"}),
    "rules": frozenset({"membership", "planning", "settings"}),
    "draining": frozenset({"membership"}),
    "supervisor": frozenset(
        {"cluster", "discovery", "draining", "engine", "membership", "rules", "settings", "status"}
    ),
    "api": frozenset({"engine", "scheduling", "status"}),
    "drafts": frozenset({"cluster", "engine", "planning", "scheduling", "settings"}),
    "models": frozenset(
        {"cluster", "engine", "planning", "scheduling", "settings", "status", "supervisor"}
    ),
    "app": frozenset(
        {
            "api",
            "cluster",
            "drafts",
            "engine",
            "models",
            "planning",
            "scheduling",
            "settings",
            "status",
            "supervisor",
        }
    ),
}
# Pure state and arithmetic: events and facts come in, values go out.
PURE = ("membership", "planning", "scheduling")
# Transports, threads and clocks, which have no business there.
IMPURE = frozenset(
    {
        "asyncio",
        "concurrent",
        "datetime",
        "google",
        "grpc",
        "multiprocessing",
        "queue",
        "selectors",
        "socket",
        "subprocess",
        "threading",
        "time",
    }
)


def imports_of(source: str) -> set[str]:
    """Dotted names that a module imports at run time, anywhere in it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from hearth.root import x` names a sub-package; of deeper ones the first part counts.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_arrows(package: str, sources: Iterable[tuple[str, str]]) -> list[str]:
    """Forbidden imports of the modules of `package`, (name, source) each."""
    wrong = []
    for name, source in sources:
        for target in sorted(imports_of(source)):
            parts = target.split(".")
            if parts[:2] == ["hearth", "root"]:
                if parts[2] != package and parts[2] not in ARROWS[package]:
                    wrong.append(f"{name}: {package} -> {parts[2]}")
            elif package in PURE and (parts[0] in IMPURE or parts[:2] == ["hearth", "v1"]):
                wrong.append(f"{name}: {package} is pure, and imports {target}")
    return wrong


def modules_of(package: str) -> list[tuple[str, str]]:
    """(path, source) of each module of a sub-package."""
    folder = ROOT / package
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{package}.py"]
    return [(str(path.relative_to(TOP)), path.read_text()) for path in files]


def test_every_part_of_the_root_is_in_the_table() -> None:
    parts = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    parts |= {path.stem for path in ROOT.glob("*.py")} - {"__init__"}
    assert parts == set(ARROWS)


def test_the_table_has_no_circle() -> None:
    left = dict(ARROWS)
    while left:
        lowest = [part for part, below in left.items() if not below & left.keys()]
        assert lowest, f"a circle among {', '.join(sorted(left))}"
        for part in lowest:
            del left[part]


@pytest.mark.parametrize("package", sorted(ARROWS))
def test_arrows_point_down(package: str) -> None:
    assert wrong_arrows(package, modules_of(package)) == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("scheduling", "from hearth.root.engine.engine import Engine"),
        ("scheduling", "from hearth.root import engine"),
        ("planning", "from hearth.root.membership.membership import Membership"),
        ("membership", "import hearth.root.cluster.cluster"),
        ("engine", "def late():\n    from hearth.root.cluster.cluster import Cluster"),
        ("api", "from hearth.root.supervisor import Supervisor"),
        ("scheduling", "import time"),
        ("planning", "from threading import Lock"),
        ("membership", "from hearth.v1 import root_pb2"),
        ("membership", "from google.protobuf import message"),
        ("planning", "import grpc.aio"),
    ],
)
def test_a_turned_arrow_is_found(package: str, line: str) -> None:
    """The test's own test: a real module of the package with one import more."""
    name, source = modules_of(package)[-1]
    assert wrong_arrows(package, [(name, source)]) == []
    assert len(wrong_arrows(package, [(name, f"{source}\n{line}\n")])) == 1


def test_pure_packages_load_no_transport() -> None:
    """Not by way of anything that they import, either."""
    modules = [
        "hearth.root." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PURE
        for path in sorted((ROOT / package).glob("*.py"))
        if path.name != "__init__.py"
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted(n for n in sys.modules if n == 'grpc' or n.startswith('google.protobuf')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
