"""The page's files over HTTP, and `/cluster`: headers, keys, roles. Without a browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
from browsing import two_nodes
from serving_fakes import Root

from hearth.common.api_keys import ApiKeys
from hearth.root.api.http.page import POLICY
from hearth.root.status.activity import Activity, NodeActivity
from hearth.v1 import root_pb2

TOP = Path(__file__).resolve().parents[2]
STATIC = TOP / "services/root/api/http/page/static"
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FILES = sorted(
    path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.*") if path.suffix != ".LICENSE"
)


@pytest.fixture(scope="module")
def root() -> Iterator[Root]:
    with Root(http=True) as running:
        yield running


def test_browsers_get_the_page_and_clients_of_ollama_their_words(root: Root) -> None:
    page = httpx.get(root.url, headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["vary"] == "Accept"
    assert "<title>Hearth</title>" in page.text
    assert httpx.get(root.url).text == "Ollama is running"
    assert httpx.head(root.url).status_code == 200


@pytest.mark.parametrize("name", FILES)
def test_files_are_served_once(root: Root, name: str) -> None:
    url = f"{root.url}/page/{name}"
    found = httpx.get(url)
    assert found.status_code == 200
    assert found.content == (STATIC / name).read_bytes()
    assert found.headers["content-security-policy"] == POLICY
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["cache-control"] == "no-cache"
    again = httpx.get(url, headers={"if-none-match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == found.headers["etag"]


def test_the_policy_allows_this_origin_only() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["object-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in POLICY
    assert "http" not in POLICY


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/none.js",
        "/page/%2e%2e/page/main.js",
        "/page/%2e%2e/__init__.py",
        "/page//etc/passwd",
        "/page/vendor",
        "/page/vendor/lit-html.LICENSE",
        "/page/main.js%00.css",
    ],
)
def test_nothing_else_is_served(root: Root, path: str) -> None:
    with httpx.Client(base_url=root.url) as client:
        request = client.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=path.encode())
        assert client.send(request).status_code == 404


def test_files_hold_no_inline_scripts_styles_or_other_origins() -> None:
    for path in STATIC.rglob("*"):
        if path.suffix not in (".html", ".js", ".css", ".svg", ".webmanifest"):
            continue
        if "vendor" in path.parts:
            continue
        text = path.read_text()
        assert not re.search(r"\son\w+=[\"']", text), path
        assert not re.search(r"[\s\"']style=", text), path
        assert not re.search(r"<style|eval\(|new Function|innerHTML|document\.write", text), path
        assert not re.search(r"(?:src|import|fetch|url)\W{1,3}https?://", text), path


def test_libraries_are_those_that_were_chosen() -> None:
    script = TOP / "packaging/page/vendor.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("lit-html", "marked", "dompurify"):
        assert (STATIC / "vendor" / f"{name}.LICENSE").is_file()


KEYS = "anna key-of-a-client-000\nada key-of-an-operator operator\n"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Root]:
    (tmp_path / "keys").write_text(KEYS)
    (tmp_path / "keys").chmod(0o600)
    keys = ApiKeys(tmp_path / "keys")
    with Root(http=True, http_options={"api_keys": keys}) as running:
        yield running


def test_files_need_no_key_and_everything_else_does(locked: Root) -> None:
    assert httpx.get(locked.url, headers=BROWSER).status_code == 200
    assert httpx.get(f"{locked.url}/page/main.js").status_code == 200
    for path in ("/cluster", "/cluster/events", "/v1/models", "/props"):
        assert httpx.get(locked.url + path).status_code == 401
    key = {"authorization": "Bearer key-of-a-client-000"}
    assert httpx.get(f"{locked.url}/cluster", headers=key).status_code == 200
    inside = httpx.get(f"{locked.url}/k/key-of-a-client-000", headers=BROWSER)
    assert (inside.status_code, inside.headers["location"]) == (307, "/k/key-of-a-client-000/")
    assert httpx.get(f"{locked.url}/k/key-of-a-client-000/", headers=BROWSER).status_code == 200
    assert httpx.get(f"{locked.url}/k/key-of-a-client-000/cluster").status_code == 200


# -- /cluster --------------------------------------------------------------------------------------


BUSY = Activity(1, 2, 3, 4, 50, 60, (NodeActivity("desk", 2.0, 1.0), NodeActivity("pi", 3.0, 0.0)))


def test_the_cluster_as_json() -> None:
    with Root(http=True, activity=lambda: BUSY) as root:
        root.cluster.show(two_nodes())
        found = httpx.get(f"{root.url}/cluster").json()
    assert (found["state"], found["epoch"], found["lane"], found["sync_type"]) == (
        "serving", 3, "mesh", "q80",
    )  # fmt: skip
    assert found["model"]["has_chat_template"] is True
    assert [(node["name"], node["state"], node["rank"]) for node in found["nodes"]] == [
        ("desk", "serving", 0),
        ("pi", "serving", 1),
    ]
    (peer,) = found["peers"]
    assert peer["address"] == "10.0.0.2:7717"
    assert (peer["name"], peer["sources"], peer["state"]) == ("pi", ["static"], "in")
    assert found["load"]["pages_used"] == 3
    assert found["load"]["nodes"][1] == {"name": "pi", "compute_seconds": 3.0, "sync_seconds": 0.0}
    assert [event["text"] for event in found["events"]] == [
        "worker pi (10.0.0.2:7717) has a part of the model",
        "plan 3 runs on 2 nodes",
    ]


def test_changes_are_streamed_until_the_root_ends() -> None:
    seen: list[tuple[str, dict[str, object]]] = []
    with Root(http=True) as root:
        root.cluster.show(two_nodes())
        changed = threading.Event()

        def change() -> None:
            assert changed.wait(20)
            root.cluster.show(two_nodes("DEGRADED", "worker pi was lost"))

        thread = threading.Thread(target=change)
        thread.start()
        with httpx.stream("GET", f"{root.url}/cluster/events", timeout=20) as response:
            assert response.headers["content-type"] == "text/event-stream"
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    seen.append((name, json.loads(line[6:])))
                    changed.set()
                    if seen[-1][1].get("state") == "degraded":
                        break
        thread.join()
        # The client has left: nothing holds the watch's place.
        assert root.frontend.open_answers == 0
    assert seen[0][0] == "cluster"
    assert "load" in {name for name, _ in seen}
    assert seen[-1][1]["reason"] == "worker pi was lost"


def test_draining_is_for_operators(tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def drain(worker: str, undo: bool) -> Future[root_pb2.ClusterStatus]:
        asked.append((worker, undo))
        done: Future[root_pb2.ClusterStatus] = Future()
        done.set_result(two_nodes())
        return done

    (tmp_path / "keys").write_text(KEYS)
    (tmp_path / "keys").chmod(0o600)
    keys = ApiKeys(tmp_path / "keys")
    with Root(http=True, http_options={"api_keys": keys}, drain=drain) as root:

        def post(key: str, **headers: str) -> httpx.Response:
            headers["authorization"] = f"Bearer {key}"
            body = {"worker": "pi", "undo": True}
            return httpx.post(f"{root.url}/cluster/drain", json=body, headers=headers, timeout=20)

        refused = post("key-of-a-client-000")
        assert refused.status_code == 403
        assert "is for operators" in refused.json()["error"]["message"]
        assert post("key-of-an-operator", origin="https://evil.example").status_code == 403
        assert asked == []
        assert post("key-of-an-operator").json()["state"] == "serving"
        assert asked == [("pi", True)]
        bad = httpx.post(
            f"{root.url}/cluster/drain", json={}, headers={"x-api-key": "key-of-an-operator"}
        )
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "worker")
