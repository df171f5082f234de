"""`hearth root --http`: real models on one node and on several, and the options."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import ServiceProcess, free_port

REQUESTS: list[dict[str, Any]] = [
    {"temperature": 0, "logit_bias": {"300": 3, "14": -100}},
    {"temperature": 0.9, "seed": -3, "presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 1.2, "seed": 11, "top_p": 0.9, "min_p": 0.02, "n": 2},
]


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, ServiceProcess]]:
    """The address of the HTTP port of a root of the demo model."""
    port = free_port()
    root = ServiceProcess(
        *("root", "--model", "demo", "--threads", "1", "--listen", "127.0.0.1:0"),
        *("--http", f"127.0.0.1:{port}", *options),
        log=folder / f"root{port}.log",
    )
    try:
        yield f"http://127.0.0.1:{port}", root
    finally:
        root.end()


def answers(url: str) -> list[Any]:
    found = []
    for request in REQUESTS:
        body = {"prompt": "Once upon a time", "max_tokens": 24, "logprobs": 3} | request
        got = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert got.status_code == 200, got.text
        found += got.json()["choices"]
    return found


def test_the_same_answers_from_one_node_and_from_three(tmp_path: Path) -> None:
    with served(tmp_path) as (url, _):
        alone = answers(url)
    with served(tmp_path, "--nodes", "3") as (url, _):
        together = answers(url)
    assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]
    assert len({choice["text"] for choice in alone}) == len(alone)
    for one, other in zip(alone, together, strict=True):
        values = one["logprobs"]["token_logprobs"]
        assert other["logprobs"]["token_logprobs"] == pytest.approx(values, abs=1e-3)


def test_metrics_and_the_log_of_a_root(tmp_path: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    with served(tmp_path, "--metrics", metrics) as (url, root):
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/api/tags").json()["models"][0]["size"] > 1 << 20
        got = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert httpx.get(f"{url}/v1/nothing").status_code == 404
        text = httpx.get(f"http://{metrics}/metrics").text
        assert f"HTTP for other clients at {url}/v1" in root.log.read_text()
        assert f"request {got.headers['x-request-id']} of 127.0.0.1" in root.log.read_text()
    counts = dict(re.findall(r"hearth_http_requests_total\{(.*)\} ([\d.]+)", text))
    assert counts['face="openai",status="200"'] == "1.0"
    assert counts['face="openai",status="404"'] == "1.0"
    assert counts['face="ollama",status="200"'] == "1.0"
    assert counts['face="llama-server",status="200"'] == "1.0"


def test_no_http(tmp_path: Path) -> None:
    root = ServiceProcess(
        *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--no-http"),
        log=tmp_path / "root.log",
    )
    try:
        assert "HTTP" not in root.log.read_text()
    finally:
        root.end()
