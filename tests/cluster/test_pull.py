"""`hearth pull`, `hearth models`, and models by their names, with a hub on the loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from converter_builders import random_tensors, tiny_spec, write_gguf
from fake_hub import COMMIT, FakeHub, Repository
from harness import clean_environ, free_port

from hearth.converter.packaged import demo_directory

Run = Callable[..., subprocess.CompletedProcess[str]]


def demo_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in demo_directory().iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    spec = tiny_spec()
    path = tmp_path_factory.mktemp("gguf") / "t.gguf"
    return write_gguf(path, spec, random_tensors(spec)).read_bytes()


def of_architecture(gguf: bytes, name: bytes) -> bytes:
    """The same file of another architecture, whose name has five letters too."""
    assert gguf.count(b"llama") >= 1
    return gguf.replace(b"llama", name)


@pytest.fixture(scope="module")
def hub(gguf: bytes) -> Iterator[FakeHub]:
    demo = demo_files()
    other = json.loads(demo["config.json"]) | {
        "architectures": ["ZebraForCausalLM"],
        "model_type": "zebra",
    }
    pickled = {name: data for name, data in demo.items() if not name.endswith(".safetensors")}
    models = {
        "me/story": Repository(demo | {"train.py": b"evil", "notes.bin": b"x"}),
        "me/zebra": Repository(demo | {"config.json": json.dumps(other).encode()}),
        "me/pickled": Repository(pickled | {"pytorch_model.bin": b"x" * 1000}),
        "me/gated": Repository(demo, gated=True),
        "me/huge": Repository(demo, stated={"model.safetensors": 1 << 60}),
        "me/nothing": Repository({"README.md": b"hello"}),
        "me/one-gguf": Repository({"one-Q8_0.gguf": gguf, "mmproj-one-f16.gguf": b"x"}),
        "me/other-gguf": Repository({"x-F32.gguf": of_architecture(gguf, b"zebra"), "a.txt": b"x"}),
        "me/no-gguf": Repository({"x-F32.gguf": b"<html>" * 1000}),
        "me/large-gguf": Repository({"x-F32.gguf": gguf + bytes(3 << 20)}),
        "me/ggufs": Repository(
            {
                "m-Q4_K_M.gguf": gguf,
                "m-Q8_0.gguf": gguf,
                "BF16/m-BF16-00001-of-00002.gguf": gguf,
                "BF16/m-BF16-00002-of-00002.gguf": gguf,
                "m-Q6_K-00001-of-00002.gguf": gguf,
                "README.md": b"hello",
            }
        ),
    }
    with FakeHub(models) as running:
        yield running


@pytest.fixture
def run(hub: FakeHub, tmp_path: Path) -> Run:
    """`hearth` with the hub and an empty cache."""
    hub.sent.clear()
    hub.status = 0

    def hearth(*words: str, endpoint: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hearth.cli.main", *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
            env=clean_environ(
                {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint or hub.address, "HF_TOKEN": ""}
            ),
        )

    return hearth


def test_what_is_pulled_runs_by_its_name(run: Run, hub: FakeHub, tmp_path: Path) -> None:
    done = run("pull", "me/story")
    assert done.returncode == 0, done.stderr
    (path,) = done.stdout.splitlines()
    assert path == str(tmp_path / "hub" / "models--me--story" / "snapshots" / COMMIT)
    assert done.stderr.splitlines()[-1] == "next: hearth chat me/story"
    assert not {"train.py", "notes.bin"} & set(hub.sent)
    hub.sent.clear()
    assert run("pull", "me/story").stdout.splitlines() == [path]
    assert not set(hub.sent) - {"config.json"}  # what is there is not sent again
    made = run("generate", "me/story", "-p", "Once", "--max-tokens", "4")
    assert made.stdout == run("generate", "demo", "-p", "Once", "--max-tokens", "4").stdout != ""
    listed = run("models").stdout.splitlines()
    names = [line.split()[0] for line in listed]
    assert names[:2] == ["NAME", "demo"]
    assert names[-1] == "me/story"
    assert listed[-1].split()[-1] == "yes"


def test_without_the_hub_what_is_in_the_cache_is_named(run: Run) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    path = run("pull", "me/one-gguf").stdout
    done = run("pull", "me/one-gguf", endpoint=gone)
    assert (done.returncode, done.stdout) == (0, path)
    assert "cannot be reached" in done.stderr


def test_gguf_repositories(run: Run, hub: FakeHub) -> None:
    done = run("pull", "me/ggufs:q4_k_m")
    assert done.stdout.strip().endswith("/m-Q4_K_M.gguf"), done.stderr
    assert hub.sent == ["m-Q4_K_M.gguf"]
    done = run("pull", "me/ggufs:BF16")
    assert done.stdout.strip().endswith("/BF16/m-BF16-00001-of-00002.gguf")
    folder = Path(done.stdout.strip()).parent
    assert [path.name[-18:] for path in sorted(folder.iterdir())] == [
        "00001-of-00002.gguf"[-18:],
        "00002-of-00002.gguf"[-18:],
    ]
    done = run("pull", "me/one-gguf")
    assert done.stderr.splitlines()[-1] == "next: hearth chat me/one-gguf"
    assert run("generate", "me/one-gguf", "--max-tokens", "2").returncode == 0
    assert run("generate", "me/ggufs:Q4_K_M", "--max-tokens", "2").returncode == 0
    assert run("generate", "me/ggufs/m-Q4_K_M.gguf", "--max-tokens", "2").returncode == 0
    done = run("generate", "me/ggufs", "--max-tokens", "2")
    assert "means 2 GGUF models; name one, as in me/ggufs:BF16: BF16, Q4_K_M" in done.stderr
    names = [item["name"] for item in json.loads(run("models", "--json").stdout)]
    pulled = [name for name in names if "/" in name]
    assert names[0] == "demo"
    assert pulled == ["me/ggufs:BF16", "me/ggufs:Q4_K_M", "me/one-gguf:Q8_0"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("me/zebra", "architecture 'zebra' is not supported; Hearth runs llama"),
        ("me/pickled", "pickled files only (pytorch_model.bin)"),
        ("me/gated", "/me/gated, make a token at "),
        ("me/huge", "needs 1152921504.6 GB on the disk"),
        ("me/nothing", "neither a config.json nor a GGUF file"),
        ("me/ggufs", "means 4 GGUF models; name one, as in me/ggufs:BF16: BF16, Q4_K_M"),
        ("me/ggufs:Q5_K_M", "me/ggufs has no Q5_K_M; its GGUF models are BF16, Q4_K_M"),
        ("me/ggufs:Q6_K", "is one of 2 parts, and others are missing"),
        ("me/ggufs/absent.gguf", "me/ggufs has no absent.gguf"),
        ("me/story:Q8_0", "me/story has no GGUF file"),
        ("me/other-gguf", "me/other-gguf: x-F32.gguf: architecture 'zebra' is not supported"),
        ("me/no-gguf", "so it is not a GGUF file; nothing was downloaded"),
        ("me/absent", "the hub has no model 'me/absent', or it is private"),
    ],
)
def test_what_cannot_run_is_refused_before_its_weights(
    run: Run, hub: FakeHub, name: str, problem: str
) -> None:
    done = run("pull", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert problem in done.stderr
    assert done.stderr.count("\n") <= 2
    assert not any(file.endswith((".safetensors", ".gguf", ".bin")) for file in hub.sent)


def test_of_a_gguf_file_the_header_comes_first(run: Run, hub: FakeHub) -> None:
    hub.parts.clear()
    done = run("pull", "me/large-gguf")
    assert done.returncode == 0, done.stderr
    assert hub.parts == {"x-F32.gguf": 1 << 20}
    assert hub.sent == ["x-F32.gguf"]


def test_errors_of_the_hub_are_told_apart(run: Run, hub: FakeHub) -> None:
    done = run("pull", "me/story", "--revision", "v2")
    assert "me/story has no revision 'v2'" in done.stderr
    hub.status = 500
    done = run("pull", "me/story")
    assert "the hub answers with an error for me/story (HTTP 500); try again later" in done.stderr
    done = run("pull", "me/story", endpoint=f"http://127.0.0.1:{free_port()}")
    assert "cannot be reached: [Errno 111] Connection refused" in done.stderr


def test_names_that_are_not_there(run: Run) -> None:
    done = run("generate", "me/absent")
    assert "`hearth pull me/absent` downloads it" in done.stderr
    done = run("generate", "llama3.2")
    assert "there is no model at 'llama3.2'; give a directory" in done.stderr
    assert run("models").stderr.startswith("`hearth pull OWNER/MODEL`")
