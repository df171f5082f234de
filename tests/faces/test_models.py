"""Several models of one root: chosen by name, one in memory at a time, loaded on demand."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from converter_builders import random_tensors, tiny_spec, write_gguf
from harness import ServiceProcess, WorkerProcess, free_port, hearth

from hearth.client import Client, HearthError, InvalidArgument
from hearth.common import errors
from hearth.converter import open_model
from hearth.converter.tokenizers.confined import ConfinedTokenizer
from hearth.root.api.http import limits
from hearth.root.app import core, serving_models
from hearth.root.engine.params import GenerateParams
from hearth.root.models import host
from hearth.root.models.card import read_cards
from hearth.root.models.host import Host
from hearth.root.models.seat import Seat
from hearth.root.settings import ClusterSettings, Joining, Serving
from hearth.worker.shard import NodeShard

PROMPT = "ab"
SETTINGS = ClusterSettings(threads=1, context=64, page_size=8, max_step_tokens=16)
NAMES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small models of random weights, and a file that is none."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(NAMES):
        spec = tiny_spec(vocab_size=300, layers=2 + seed)
        write_gguf(folder / f"{name}.gguf", spec, random_tensors(spec, seed))
    (folder / "broken.gguf").write_bytes(b"GGUF, or so it says")
    return folder


@pytest.fixture(scope="module")
def texts(shelf: Path) -> dict[str, str]:
    """The greedy answer of each model, alone."""
    return {name: alone(shelf / f"{name}.gguf") for name in NAMES}


def alone(path: Path, count: int = 8) -> str:
    with open_model(str(path)) as model, core(model, SETTINGS) as running:
        prompt = tuple(running.engine.tokenizer.encode(PROMPT))
        events = running.engine.generate(GenerateParams(prompt, count, ignore_eos=True))
        return "".join(getattr(event, "text", "") for event in events)


@contextmanager
def served(
    shelf: Path,
    cluster: ClusterSettings = SETTINGS,
    pause_seconds: float = 60.0,
    **more: Any,
) -> Iterator[tuple[str, str]]:
    """The gRPC address and the URL of a root of these models."""
    cards = read_cards([str(shelf)], None, cluster)
    http = f"127.0.0.1:{free_port()}"
    settings = Serving(listen="127.0.0.1:0", http=http, shutdown_seconds=0.1, **more)
    with serving_models(cards, cluster, settings, pause_seconds=pause_seconds) as port:
        yield f"127.0.0.1:{port}", f"http://{http}"


def complete(url: str, model: str, count: int = 8, **more: Any) -> Any:
    body = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": count,
        "temperature": 0,
        **more,
    }
    got = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]["text"]


def eventually(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until it is so; an event says nothing of the server's own threads."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def loaded(url: str) -> list[str]:
    return [each["name"] for each in httpx.get(f"{url}/api/ps").json()["models"]]


def test_a_directory_of_models(shelf: Path, caplog: pytest.LogCaptureFixture) -> None:
    cards = read_cards([str(shelf)], None, SETTINGS)
    assert [card.name for card in cards] == list(NAMES)
    assert "broken.gguf is left out" in caplog.text
    with pytest.raises(Exception, match="broken"):
        read_cards([str(shelf / "broken.gguf")], None, SETTINGS)
    experts = shelf / "mixture-of-experts.gguf"
    try:
        experts.symlink_to(shelf / "alpha.gguf")
        assert "mixture-of-experts" in [c.name for c in read_cards([str(shelf)], None, SETTINGS)]
    finally:
        experts.unlink()
    with pytest.raises(errors.HearthError, match="both named 'alpha'"):
        read_cards([str(shelf), str(shelf / "alpha.gguf")], None, SETTINGS)


def test_the_model_field_chooses(shelf: Path, texts: dict[str, str]) -> None:
    assert len(set(texts.values())) == 3
    with served(shelf) as (address, url):
        assert loaded(url) == []
        assert httpx.get(f"{url}/health").status_code == 200
        for name in ("alpha", "beta", "alpha", "GAMMA:latest", "someone/beta"):
            plain = name.lower().removesuffix(":latest").rpartition("/")[2]
            assert complete(url, name) == texts[plain], name
            assert loaded(url) == [f"{plain}:latest"]
        # Without a name, and by token counts: the model in memory.
        assert complete(url, "") == texts["beta"]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60)
        assert [each.id for each in client.models.list()] == list(NAMES)
        with pytest.raises(openai.NotFoundError, match="'alpha', 'beta', 'gamma'"):
            client.completions.create(model="delta", prompt=PROMPT)
        with Client(address) as sdk:
            made = sdk.generate_text(PROMPT, max_tokens=8, model="gamma", ignore_eos=True)
            assert made == texts["gamma"]
            assert [(each.name, each.loaded) for each in sdk.models()] == [
                ("alpha", False), ("beta", False), ("gamma", True),
            ]  # fmt: skip
            assert (sdk.model("alpha").layers, sdk.model().layers) == (2, 4)
            with pytest.raises(InvalidArgument, match="'delta' does not exist"):
                sdk.generate_text(PROMPT, model="delta")


def test_one_model_is_in_memory(
    shelf: Path, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards: weakref.WeakSet[NodeShard] = weakref.WeakSet()
    most = []
    make = NodeShard.__init__

    def counted(shard: NodeShard, *args: Any, **more: Any) -> None:
        most.append(len(shards))
        shards.add(shard)
        make(shard, *args, **more)

    monkeypatch.setattr(NodeShard, "__init__", counted)
    with served(shelf) as (_, url):
        for name in ("alpha", "beta", "gamma"):
            assert complete(url, name) == texts[name]
            assert len(shards) == 1
    assert most == [0, 0, 0]


def test_ollama_lists_loads_and_unloads(shelf: Path) -> None:
    with served(shelf, keep_alive=1000.0) as (_, url):
        client = ollama.Client(url, timeout=60)
        assert [each.model for each in client.list().models] == [f"{n}:latest" for n in NAMES]
        facts = client.show("beta").modelinfo
        assert facts is not None
        assert facts["llama.block_count"] == 3
        assert client.generate("beta", "").done_reason == "load"
        (running,) = client.ps().models
        assert running.model == "beta:latest"
        assert running.expires_at is not None
        left = running.expires_at.timestamp() - time.time()
        assert 900 < left < 1001
        client.generate("beta", PROMPT, keep_alive="2h", options={"num_predict": 1})
        (running,) = client.ps().models
        assert running.expires_at is not None
        assert running.expires_at.timestamp() - time.time() > 7000
        assert client.generate("beta", "", keep_alive=0).done_reason == "unload"
        eventually(lambda: client.ps().models == [])
        client.generate("alpha", PROMPT, keep_alive="0s", options={"num_predict": 1})
        eventually(lambda: client.ps().models == [])


@pytest.mark.parametrize("value", ["5 minutes", "m", {}, "1h-"])
def test_a_bad_keep_alive(shelf: Path, value: Any) -> None:
    with served(shelf) as (_, url):
        body = {"model": "alpha", "prompt": "a", "keep_alive": value}
        got = httpx.post(f"{url}/api/generate", json=body)
        assert got.status_code == 400
        assert "keep_alive" in got.json()["error"]


@pytest.mark.parametrize("value", [1e300, "999999999h", "9" * 20])
def test_a_keep_alive_of_ages_stops_nothing(
    shelf: Path, texts: dict[str, str], value: float | str
) -> None:
    with served(shelf) as (_, url):
        body = {"model": "alpha", "prompt": "a", "keep_alive": value, "stream": False}
        assert httpx.post(f"{url}/api/generate", json=body, timeout=60).status_code == 200
        assert loaded(url) == ["alpha:latest"]
        assert complete(url, "beta") == texts["beta"]


def test_to_unload_what_is_not_in_memory_changes_nothing(shelf: Path) -> None:
    with served(shelf, keep_alive=1000.0) as (_, url):
        client = ollama.Client(url, timeout=60)
        client.generate("alpha", "", keep_alive=0)
        complete(url, "alpha", 1)
        (running,) = client.ps().models
        assert running.expires_at is not None
        assert running.expires_at.timestamp() - time.time() > 900


def test_a_model_leaves_after_its_keep_alive(shelf: Path, texts: dict[str, str]) -> None:
    with served(shelf, keep_alive=0.2) as (_, url):
        assert complete(url, "alpha") == texts["alpha"]
        eventually(lambda: loaded(url) == [])
        assert complete(url, "alpha") == texts["alpha"]


def test_answers_in_flight_end_first(shelf: Path, texts: dict[str, str]) -> None:
    """Requests for two models at once: each gets its own, and none is cut off."""
    found: dict[tuple[str, int], str] = {}

    with served(shelf) as (_, url):

        def ask(name: str, number: int) -> None:
            found[name, number] = complete(url, name)

        threads = [
            threading.Thread(target=ask, args=(name, number))
            for number in range(4)
            for name in NAMES
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 12
    for (name, _), text in found.items():
        assert text == texts[name]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No model is loaded before this is set."""
    go = threading.Event()
    load = Host._load_seat

    def slowly(host: Host, seat: Any) -> None:
        assert go.wait(60)
        load(host, seat)

    monkeypatch.setattr(Host, "_load_seat", slowly)
    yield go
    go.set()


def test_a_stream_that_waits_has_heartbeats(
    shelf: Path, texts: dict[str, str], gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_SECONDS", 0.05)
    with served(shelf) as (address, url):
        body = {
            "model": "beta",
            "prompt": PROMPT,
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
        }
        said = []
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as got:
            for line in got.iter_lines():
                if line.startswith("data: {"):
                    said.append(json.loads(line[6:])["choices"][0]["text"])
                if len(said) == 4:
                    gate.set()
        assert said[:4] == [""] * 4
        assert "".join(said) == texts["beta"]
        gate.clear()
        # gRPC's clients read why.
        reasons: list[str] = []

        def waiting(reason: str) -> None:
            reasons.append(reason)
            gate.set()

        with Client(address) as sdk:
            text = sdk.generate_text(
                PROMPT, max_tokens=8, model="alpha", ignore_eos=True, on_waiting=waiting
            )
        assert text == texts["alpha"]
        assert "not in memory" in reasons[0]
        assert reasons[-1] == ""


def test_the_queue_of_a_model_is_bounded(
    shelf: Path, texts: dict[str, str], gate: threading.Event
) -> None:
    with served(shelf) as (address, url), ExitStack() as stack:
        clients = [stack.enter_context(Client(address)) for _ in range(4)]
        # Some more than there are places: `refused` may take one for a moment.
        for number in range(72):
            stream = clients[number % 4].generate(PROMPT, max_tokens=1, model="alpha")
            stack.enter_context(stream)

        def refused() -> bool:
            # A place that the one below had, when not all had come, is free again: this takes it.
            stack.enter_context(clients[0].generate(PROMPT, max_tokens=1, model="alpha"))
            try:
                clients[0].generate_text(PROMPT, max_tokens=1, model="alpha", timeout=3)
            except HearthError as error:
                return error.reason == "QUEUE_FULL"
            return False

        eventually(refused)
        gate.set()
        assert complete(url, "beta") == texts["beta"]


def test_a_wait_is_bounded(shelf: Path, gate: threading.Event) -> None:
    with served(shelf, pause_seconds=0.3) as (address, url):
        with Client(address) as sdk:
            with pytest.raises(HearthError, match=r"was not in memory within 0\.3 s"):
                sdk.generate_text(PROMPT, max_tokens=1, model="alpha")
        gate.set()
        eventually(lambda: loaded(url))


def test_a_model_that_cannot_be_loaded(shelf: Path, tmp_path: Path, texts: dict[str, str]) -> None:
    """The request ends with the reason; the others' models still run."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in NAMES[:2]:
        (folder / f"{name}.gguf").write_bytes((shelf / f"{name}.gguf").read_bytes())
    with served(folder) as (_, url):
        (folder / "alpha.gguf").write_bytes(b"GGUF")
        body = {"model": "alpha", "prompt": PROMPT, "max_tokens": 1}
        got = httpx.post(f"{url}/v1/completions", json=body, timeout=30)
        assert got.status_code == 500
        assert "alpha cannot be read" in got.json()["error"]["message"]
        assert complete(url, "beta") == texts["beta"]


def test_a_client_that_leaves_the_queue(shelf: Path, texts: dict[str, str]) -> None:
    with served(shelf) as (address, url):
        assert complete(url, "alpha") == texts["alpha"]
        with Client(address) as sdk:
            # A long answer of alpha; a request for beta comes and goes.
            with sdk.generate(PROMPT, model="alpha", ignore_eos=True) as running:
                next(iter(running))
                with sdk.generate(PROMPT, max_tokens=1, model="beta") as other:
                    other.cancel()
                "".join(running)
            eventually(lambda: complete(url, "alpha") == texts["alpha"])


def test_embeddings_choose_a_model(shelf: Path) -> None:
    with served(shelf) as (address, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60)
        one = client.embeddings.create(model="alpha", input="ab").data[0].embedding
        two = client.embeddings.create(model="beta", input="ab").data[0].embedding
        assert one != two
        with Client(address) as sdk:
            assert sdk.embed(["ab"], model="alpha")[0] == pytest.approx(one, abs=1e-6)


def test_workers_keep_slices_and_one_is_lost(
    shelf: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    """Over two workers: a second load sends nothing; a worker lost meanwhile ends nothing."""
    with ExitStack() as stack:
        workers = [
            WorkerProcess(
                "--cache-dir",
                str(tmp_path / f"cache{number}"),
                log=tmp_path / f"worker{number}.log",
            )
            for number in range(2)
        ]
        for worker in workers:
            stack.callback(worker.end)
        cluster = ClusterSettings(
            workers=tuple(worker.address for worker in workers),
            threads=1,
            context=64,
            page_size=8,
            max_step_tokens=16,
        )
        joining = Joining(min_workers=1, wait_seconds=0.5)
        address, url = stack.enter_context(served(shelf, cluster, joining=joining))
        assert complete(url, "alpha") == texts["alpha"]
        assert complete(url, "beta") == texts["beta"]
        assert complete(url, "alpha") == texts["alpha"]
        with Client(address) as sdk:
            nodes = sdk.cluster().nodes
            assert [node.weight_bytes_from_network for node in nodes[1:]] == [0, 0]
            assert all(node.weight_bytes_from_cache for node in nodes[1:])
        workers[1].kill()
        assert complete(url, "alpha") == texts["alpha"]
        assert complete(url, "beta") == texts["beta"]
        with Client(address) as sdk:
            assert len(sdk.cluster().nodes) == 2
            # A worker taken out stays out when the model changes.
            sdk.drain_worker(workers[0].address)
            assert complete(url, "gamma") == texts["gamma"]
            # It got no slices of this model, not even before.
            assert len(sdk.cluster().nodes) == 1
        assert complete(url, "gamma") == texts["gamma"]


def test_the_tokenizer_of_a_model_that_is_not_in_memory_ends_its_process_after_a_while(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Seat] = []
    open_seat = Seat.open

    def noted(self: Seat) -> None:
        opened.append(self)
        open_seat(self)

    monkeypatch.setattr(Seat, "open", noted)
    monkeypatch.setattr(host, "_TOKENIZER_SECONDS", 0.2)
    with served(shelf) as (_, url):

        def ask() -> list[int]:
            body = {"content": PROMPT, "model": "beta"}
            answer = httpx.post(f"{url}/tokenize", json=body, timeout=60)
            return list(answer.json()["tokens"])

        def ended() -> bool:
            tokenizer = opened[0].tokenizer
            return isinstance(tokenizer, ConfinedTokenizer) and tokenizer._process is None

        first = ask()
        assert first
        eventually(ended)
        assert ask() == first
        eventually(ended)
        # A text that comes long after its request: then, too, what it starts is ended.
        opened[0].open()
        time.sleep(0.5)
        assert opened[0].tokenizer.encode(PROMPT, add_special=False)
        eventually(ended)
        assert loaded(url) == []


def test_the_command_line(shelf: Path, texts: dict[str, str], tmp_path: Path) -> None:
    http = f"127.0.0.1:{free_port()}"
    words = ["--models", str(shelf), "--http", http, "--listen", "127.0.0.1:0"]
    words += ["--context", "64", "--nodes", "2", "--keep-alive", "-1"]
    root = ServiceProcess("root", *words, log=tmp_path / "root.log")
    try:
        assert complete(f"http://{http}", "beta") == texts["beta"]
        listed = hearth("models", "--root", root.address)
        assert listed.returncode == 0, listed.stderr
        rows = [line.split() for line in listed.stdout.splitlines()]
        assert rows[0][:1] + rows[0][-2:] == ["NAME", "IN", "MEMORY"]
        assert [(row[0], row[-1]) for row in rows[1:]] == [
            ("alpha", "no"), ("beta", "yes"), ("gamma", "no"),
        ]  # fmt: skip
        both = hearth("models", "--root", root.address, "--json")
        assert [each["loaded"] for each in json.loads(both.stdout)] == [False, True, False]
        assert httpx.get(f"http://{http}/api/ps").json()["models"][0]["expires_at"] > "2099"
    finally:
        assert root.end() == 0
    refused = hearth("root", "--models", str(tmp_path / "nothing"))
    assert refused.returncode == 1
    assert "there is no model at" in refused.stderr
    assert hearth("root", "demo", "--models", str(shelf)).returncode == 2
