"""`buf breaking`, as `make lint` runs it: changes of hearth.v1 that break programs fail."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
BUF = TOP / "build" / "npm" / "node_modules" / ".bin" / "buf"


@pytest.fixture
def breaking(tmp_path: Path) -> Callable[[str, str], str]:
    """Output of `buf breaking` after a change of root.proto, by a pattern and its replacement."""
    if not BUF.exists():
        pytest.skip("buf is absent: `make lint` fetches it")

    def run(pattern: str, replacement: str) -> str:
        for name in ("before", "after"):
            folder = tmp_path / name
            shutil.copytree(TOP / "protos" / "hearth", folder / "protos" / "hearth")
            shutil.copy(TOP / "buf.yaml", folder)
        baseline = tmp_path / "baseline.binpb"
        subprocess.run([BUF, "build", "-o", baseline], cwd=tmp_path / "before", check=True)
        path = tmp_path / "after" / "protos" / "hearth" / "v1" / "root.proto"
        text, count = re.subn(pattern, replacement, path.read_text(), count=1)
        assert count == 1
        path.write_text(text)
        done = subprocess.run(
            [BUF, "breaking", "--against", baseline],
            cwd=tmp_path / "after",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode == 0) == (not done.stdout), done.stderr
        return done.stdout

    return run


def test_a_removed_field_breaks(breaking: Callable[[str, str], str]) -> None:
    found = breaking(r"  uint32 max_tokens = 4;\n", "")
    assert re.search(r'Previously present field "4".*"max_tokens".*"GenerateRequest"', found)


def test_another_type_breaks(breaking: Callable[[str, str], str]) -> None:
    assert "max_tokens" in breaking(r"uint32 max_tokens = 4;", "string max_tokens = 4;")


def test_a_new_field_does_not(breaking: Callable[[str, str], str]) -> None:
    assert not breaking(r"(  uint32 max_tokens = 4;\n)", r"\1  uint32 another = 900;\n")
