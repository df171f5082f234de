"""Open WebUI, unchanged, by its own interface: answers, calls, titles, errors, a lost worker.

`make clients` installs it. It runs once, with the settings of its page in docs/clients; tests that
need another root change its connections as its administrator would.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import documented
import httpx
import pytest
from harness import free_port
from installed_clients import ANSWER, INSTALLED, Lossy, calls, formed_again, root_for, says
from serving_fakes import FakeRunner, Root

PROGRAM = INSTALLED / "webui" / "bin" / "open-webui"
# The same model by each of its two connections.
CONNECTIONS = {"openai": "tiny", "ollama": "tiny:latest"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
# No accounts, nothing from the internet, nothing of its own models.
OWN = {
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": "any",
    "OFFLINE_MODE": "true",
    "USE_SLIM_DOCKER": "true",
    "ENABLE_VERSION_UPDATE_CHECK": "False",
    "ANONYMIZED_TELEMETRY": "False",
}
# A first start compiles all of its Python files.
_START_SECONDS = 300

pytestmark = [
    pytest.mark.skipif(not PROGRAM.exists(), reason="`make clients` installs Open WebUI"),
    # One server for all tests: they run in one process, one after another.
    pytest.mark.xdist_group("open-webui"),
]


@pytest.fixture(scope="module")
def home() -> Iterator[Root]:
    """The root of the page's settings. It calls the weather where that is offered."""
    with root_for(FakeRunner(calls(("weather", {"city": "Bern"})))) as root:
        yield root


@pytest.fixture(scope="module")
def webui(home: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("webui")
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder), **OWN}
    text = (documented.CLIENTS / "open-webui.md").read_text()
    for command in documented.commands(text.replace("http://localhost:7780", home.url)):
        word, *rest = shlex.split(command)
        if word == "export":
            name, _, value = rest[0].partition("=")
            environ[name] = value
    port = free_port()
    words = [str(PROGRAM), "serve", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=folder, env=environ, stdout=out, stderr=out)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _wait(client, process, log)
            found = client.post("/api/v1/auths/signin", json={"email": "", "password": ""}).json()
            client.headers["Authorization"] = f"Bearer {found['token']}"
            yield client
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once the server answers."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace")[-4000:])


@contextmanager
def connected(webui: httpx.Client, url: str) -> Iterator[None]:
    """Its connections are to another root within the block."""
    before = [webui.get(f"/{name}/config").json() for name in CONNECTIONS]
    other = [
        {**before[0], "OPENAI_API_BASE_URLS": [f"{url}/v1"]},
        {**before[1], "OLLAMA_BASE_URLS": [url]},
    ]
    try:
        for name, config in zip(CONNECTIONS, other, strict=True):
            webui.post(f"/{name}/config/update", json=config).raise_for_status()
        assert models(webui) == {"tiny", "tiny:latest"}
        yield
    finally:
        for name, config in zip(CONNECTIONS, before, strict=True):
            webui.post(f"/{name}/config/update", json=config).raise_for_status()


def models(webui: httpx.Client) -> set[str]:
    listed = webui.get("/api/models", params={"refresh": "true"}).json()["data"]
    return {each["id"] for each in listed} - {"arena-model"}


def ask(webui: httpx.Client, model: str, stream: bool, **more: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "Who are you?"}]
    body = {"model": model, "messages": messages, "stream": stream, **more}
    return webui.post("/api/chat/completions", json=body)


def texts(got: httpx.Response) -> str:
    """The whole text, of a stream or not."""
    if not got.text.startswith("data:"):
        content = got.json()["choices"][0]["message"]["content"]
        assert isinstance(content, str)
        return content
    return "".join(each.get("content") or "" for each in deltas(got))


def deltas(got: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in got.text.splitlines():
        data = line.removeprefix("data: ")
        if line and data != "[DONE]":
            for choice in json.loads(data).get("choices", ()):
                yield choice["delta"]


every = pytest.mark.parametrize("connection", CONNECTIONS)
both = pytest.mark.parametrize("stream", [False, True])


def test_the_models_of_both_connections(webui: httpx.Client) -> None:
    assert models(webui) == {"tiny", "tiny:latest"}
    assert webui.get("/ollama/api/version").json()["version"]
    assert webui.get("/ollama/api/ps").status_code == 200


@every
@both
def test_an_answer(webui: httpx.Client, connection: str, stream: bool) -> None:
    models(webui)
    got = ask(webui, CONNECTIONS[connection], stream)
    assert got.status_code == 200, got.text
    assert texts(got) == ANSWER


@every
@both
def test_a_call(webui: httpx.Client, connection: str, stream: bool) -> None:
    models(webui)
    got = ask(webui, CONNECTIONS[connection], stream, tools=[WEATHER])
    if stream:
        made = [call for each in deltas(got) for call in each.get("tool_calls") or ()]
        name = "".join(call["function"].get("name") or "" for call in made)
        arguments = "".join(call["function"].get("arguments") or "" for call in made)
    else:
        (call,) = got.json()["choices"][0]["message"]["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
    assert (name, json.loads(arguments)) == ("weather", {"city": "Bern"})


@every
def test_a_title(webui: httpx.Client, connection: str) -> None:
    """It asks for one after the first answer of a chat."""
    models(webui)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    body = {"model": CONNECTIONS[connection], "messages": messages, "chat_id": "a"}
    got = webui.post("/api/v1/tasks/title/completions", json=body)
    assert got.status_code == 200, got.text
    assert texts(got) == ANSWER


@every
def test_a_prompt_that_is_too_long(webui: httpx.Client, connection: str) -> None:
    with root_for(FakeRunner(says), context_size=64) as root, connected(webui, root.url):
        long = [{"role": "user", "content": "Who are you? " * 20}]
        got = ask(webui, CONNECTIONS[connection], False, messages=long)
    assert got.status_code == 400
    assert "maximum context length is 64 tokens" in got.text


@every
def test_a_worker_lost_in_an_answer(webui: httpx.Client, connection: str) -> None:
    """The text goes on where it was, and is whole."""
    runner = Lossy(says)
    with (
        root_for(runner, pause_seconds=60) as root,
        connected(webui, root.url),
        formed_again(root, runner),
    ):
        assert texts(ask(webui, CONNECTIONS[connection], True)) == ANSWER


def test_a_stream_that_fails(webui: httpx.Client) -> None:
    """The reason is shown. (Open WebUI passes over the last line of Ollama's, which has it.)"""
    runner = Lossy(says)
    with (
        root_for(runner) as root,
        connected(webui, root.url),
        formed_again(root, runner),
    ):
        assert "pi2" in ask(webui, CONNECTIONS["openai"], True).text
