"""The clients that people have, unchanged, against a root with a scripted engine.

`make clients` installs them in build/clients and runs these; without them all are skipped.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import documented
import pytest
from installed_clients import (
    ANSWER,
    NODE,
    PYTHON,
    Lossy,
    calls,
    formed_again,
    prompts,
    root_for,
    says,
)
from serving_fakes import FakeRunner

HERE = Path(__file__).parent
PYTHON_CLIENTS = (
    "openai",
    "openai_responses",
    "anthropic",
    "ollama",
    "langchain_openai",
    "langchain_ollama",
    "llama_index_openai",
    "llama_index_ollama",
    "litellm_openai",
    "litellm_ollama",
)
NODE_CLIENTS = ("openai_node", "openai_node_responses", "ollama_js")
NODE_TOOLS = ("openai_node_tools", "ollama_js_tools")
CLIENTS = (*PYTHON_CLIENTS, *NODE_CLIENTS)

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="`make clients` installs the clients")


def with_programs() -> Iterator[Path]:
    """The pages of clients that are libraries."""
    for page in documented.CLIENTS.glob("*.md"):
        if any(language in ("python", "js") for language, _ in documented.blocks(page.read_text())):
            yield page


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with root_for(FakeRunner(says), 4096) as root:
        yield root.url


def call(client: str, mode: str, url: str, program: str = "drive_python.py") -> str:
    if client in (*NODE_CLIENTS, *NODE_TOOLS):
        words = ["node", str(HERE / "drive_node.mjs")]
    else:
        words = [str(PYTHON), str(HERE / program)]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    ran = subprocess.run(
        [*words, client, mode, url],
        capture_output=True,
        text=True,
        timeout=120,
        env=kept | {"HEARTH_CLIENTS": str(NODE)},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("client", CLIENTS)
def test_an_answer(client: str, url: str) -> None:
    assert call(client, "text", url) == ANSWER


@pytest.mark.parametrize("client", CLIENTS)
def test_a_stream(client: str, url: str) -> None:
    assert call(client, "stream", url) == ANSWER


@pytest.mark.parametrize("mode", ["text", "stream"])
@pytest.mark.parametrize("client", [*PYTHON_CLIENTS, *NODE_TOOLS])
def test_parallel_calls_and_their_results(client: str, mode: str) -> None:
    script = calls(("weather", {"city": "Bern"}), ("weather", {"city": "Rome"}))
    with root_for(FakeRunner(script), 4096) as root:
        said = call(client, mode, root.url, "drive_tools.py")
        assert said == f"weather Bern, weather Rome, {ANSWER}"
        seen = prompts(root)
    assert "warm in Bern" in seen
    assert "warm in Rome" in seen


@pytest.mark.parametrize("client", CLIENTS)
def test_an_unknown_model_is_said_in_words(client: str, url: str) -> None:
    said = call(client, "error", url)
    assert "Error" in said
    assert "'missing' does not exist here; this root serves 'tiny'" in said


@pytest.mark.parametrize("client", CLIENTS)
def test_a_worker_lost_in_an_answer(client: str) -> None:
    """The text goes on where it was, and is whole."""
    runner = Lossy(says)
    with root_for(runner, 4096, pause_seconds=60) as root, formed_again(root, runner):
        assert call(client, "stream", root.url) == ANSWER


@pytest.mark.parametrize("page", sorted(with_programs()), ids=lambda page: str(page.stem))
def test_the_programs_of_a_page(page: Path, url: str) -> None:
    ran = 0
    for language, text in documented.blocks(page.read_text()):
        program = text.replace("http://localhost:7780", url).replace("smollm2", "tiny")
        if language == "python":
            words = [str(PYTHON), "-c", program]
        elif language == "js":
            # Beside its modules.
            path = NODE / "program.mjs"
            path.write_text(program)
            words = ["node", str(path)]
        else:
            continue
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert ANSWER in done.stdout, done.stderr
        ran += 1
    assert ran
