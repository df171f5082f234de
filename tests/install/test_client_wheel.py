"""The `hearth-client` wheel: pure Python, and enough to generate text from a root."""

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest
from harness import ServiceProcess, clean_environ

import hearth.v1

TOP = Path(__file__).resolve().parents[2]
CLIENT = TOP / "packaging" / "hearth-client"

PROGRAM = """
import sys
from importlib.metadata import distributions
from hearth.client import Client, HearthError

assert not {"hearth", "numpy", "tokenizers"} & {d.name for d in distributions()}
with Client(sys.argv[1]) as client:
    print(client.generate_text("Once upon a time", max_tokens=8, temperature=0))
    try:
        client.generate_text("Once", max_tokens=8, temperature=-1)
    except HearthError as error:
        print(type(error).__name__)
"""


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command, env=clean_environ(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout, built outside it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"build-dir={folder / 'build'}"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    run(*pip, "--config-settings", build, "--wheel-dir", folder, CLIENT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_pure_python_and_typed(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"hearth/client/py.typed", "hearth/v1/py.typed", "hearth/v1/root_pb2_grpc.py"} <= names
    sources = {path.name for path in (TOP / "client").glob("*.py")}
    assert sources == {
        Path(name).name for name in names if re.fullmatch(r"hearth/client/\w+\.py", name)
    }
    assert all(re.match(r"hearth/(client|v1)/|hearth_client-", name) for name in names), names


def test_no_file_belongs_to_both_distributions() -> None:
    """Else removing one of them would break the other."""
    whole, client = (
        {file.as_posix() for file in files(name) or () if "__pycache__" not in file.parts}
        for name in ("hearth", "hearth-client")
    )
    assert "hearth/v1/root_pb2.py" in client
    assert not whole & client


def test_both_distributions_have_one_version() -> None:
    version = project(TOP)["project"]["version"]
    assert project(CLIENT)["project"]["version"] == version
    assert f"hearth-client=={version}" in project(TOP)["project"]["dependencies"]


@pytest.mark.parametrize("folder", [TOP, CLIENT], ids=["hearth", "hearth-client"])
def test_ranges_start_at_the_generators_versions(folder: Path) -> None:
    """Older gRPC and protobuf refuse the stubs when they are imported."""
    stubs = Path(next(iter(hearth.v1.__path__)))
    grpc = re.search(
        r"GRPC_GENERATED_VERSION = '([\d.]+)'", (stubs / "root_pb2_grpc.py").read_text()
    )
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", (stubs / "root_pb2.py").read_text())
    assert grpc
    assert protobuf
    needs = project(folder)["project"]["dependencies"]
    assert f"grpcio>={grpc[1]},<2" in needs
    assert f"protobuf>={protobuf[1]},<{int(protobuf[1].split('.')[0]) + 1}" in needs


def test_a_program_generates_with_the_client_alone(
    wheel: Path, tmp_path: Path, start_root: Callable[..., ServiceProcess]
) -> None:
    root = start_root("--model", "demo")
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    text, error = run(python, "-c", PROGRAM, root.address).splitlines()[-2:]
    assert len(text.split()) >= 3
    assert error == "InvalidArgument"
