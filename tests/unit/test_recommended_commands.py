"""`generate` and `chat` sample as the model recommends, unless an option or a setting says so."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from serving_fakes import Greedy, Root

from hearth.cli import chat, generate
from hearth.cli.answers import Question, open_model
from hearth.root.engine.params import Sampling

RECOMMENDED = {"temperature": 0.5, "top_k": 20, "top_p": 0.75, "repetition_penalty": 1.25}
COMMANDS: Mapping[str, Any] = {"generate": generate, "chat": chat}
ALL = Sampling(0.5, 20, 0.75, repetition_penalty=1.25, seed=1)
# A command, its words, the sampling that comes of them.
CASES = [
    ("generate", [], Sampling(seed=1)),
    ("generate", ["--temperature", "0.25"], Sampling(0.25, seed=1)),
    ("generate", ["--recommended"], ALL),
    ("generate", ["--recommended", "--top-p", "1"], replace(ALL, top_p=1)),
    ("generate", ["--recommended", "--temperature", "0"], Sampling(seed=1)),
    ("chat", [], ALL),
    ("chat", ["--temperature", "0", "--top-p", "1"], Sampling(seed=1)),
    (
        "chat",
        ["--temperature", "1", "--top-k", "0", "--min-p", "0.25"],
        replace(ALL, temperature=1, top_k=0, min_p=0.25),
    ),
]


@pytest.fixture
def asked() -> list[Sampling]:
    """The sampling of each request to `root`."""
    return []


@pytest.fixture
def root(asked: list[Sampling]) -> Iterator[Root]:
    def sampler(sampling: Sampling, seed: int) -> Greedy:
        asked.append(sampling)
        return Greedy(sampling, seed)

    with Root(sampler_factory=sampler) as running:
        yield running


def recommend(root: Root, sampling: Mapping[str, float]) -> None:
    served: Any = root.frontend._model
    root.frontend._model = replace(served, sampling_defaults=sampling)


def ask(command: str, words: list[str]) -> None:
    options = COMMANDS[command].command().read([*words, "--max-tokens", "2", "--seed", "1"])
    defaults: Any = {"sampling": chat._SAMPLING} if command == "chat" else {}
    with open_model(options, **defaults) as model:
        assert list(model.ask(Question("hi")))


@pytest.mark.parametrize(("command", "words", "wanted"), CASES)
def test_of_a_running_root(
    root: Root, asked: list[Sampling], command: str, words: list[str], wanted: Sampling
) -> None:
    recommend(root, RECOMMENDED)
    ask(command, ["--root", root.address, *words])
    assert asked == [wanted]


def test_of_a_root_that_recommends_nothing(root: Root, asked: list[Sampling]) -> None:
    ask("generate", ["--root", root.address])
    ask("chat", ["--root", root.address])
    greedy, varied = asked
    assert greedy == Sampling(seed=1)
    assert (varied.temperature, varied.top_p) == (
        pytest.approx(0.7, abs=1e-6),
        pytest.approx(0.9, abs=1e-6),
    )


def test_a_setting_of_the_environment_counts(
    root: Root, asked: list[Sampling], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTH_TEMPERATURE", "0.25")
    recommend(root, RECOMMENDED)
    ask("chat", ["--root", root.address])
    assert asked == [replace(ALL, temperature=0.25)]


def test_of_a_model_that_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo model recommends a temperature of 0.7 and a top-p of 0.9."""
    words = ["demo", "--max-tokens", "2", "--top-p", "0.5"]
    with open_model(generate.command().read([*words, "--recommended"])) as model:
        assert not model.greedy
        assert list(model.ask(Question("Once")))
    assert "sampling as the model recommends: --temperature 0.7\n" in capsys.readouterr().err
    with open_model(generate.command().read(words)) as model:
        assert model.greedy
    assert "recommends" not in capsys.readouterr().err
