"""Every command of the documentation is run, or stands here with the reason why it is not.

`hearth` commands run against the demo model: addresses, models and certificates of the text are
replaced by those of this test. A new command that is neither run nor listed fails the test.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import documented
import pytest
from documented import TOP, Shown
from harness import ServiceProcess, WorkerProcess, clean_environ, free_port

from hearth.cli.commands import COMMANDS
from hearth.cli.main import main
from hearth.common import pki

SECONDS = 120
# The address of HTTP in the documentation.
HTTP = "http://localhost:7780"
# Targets of `make`: where each is run.
MAKE = {
    "demo": "a stage of .ci/run",
    "dev": "make lint and make test install the same",
    "docs": "a stage of .ci/run",
    "lint": "a stage of .ci/run",
    "test": "a stage of .ci/run",
    "test-arm": "a stage of .ci/run",
    "deploy-test": "a stage of .ci/run",
    "test-native": "part of make test",
    "testdata": "needs the internet; tests/unit/test_testdata.py uses a local server",
    "clients": "installs from the internet",
    "survival": "minutes long; tests/faults has each story in short",
    "soak": "an hour long",
    "fuzz": "long; tests/fuzz and ctest run each target for a moment",
    "bench": "measures; ctest runs the same program for a moment",
    "client-wheel": "run by tests/install",
    "fresh-test": "runs make demo and make test in a container",
}
# The first word of other commands.
OTHERS = {
    "apt": "installs packages of the system: .ci/run does",
    "eval": "sets up the shell: tests/unit/test_settings.py completes words",
    "export": "sets up the shell",
    "cd": "belongs to the command after it",
    "docker": "needs a container engine: tests/deploy/test_compose.py runs compose.yaml with one",
    "find": "the formatter: make lint runs it with --dry-run",
    "for": "needs a Kubernetes cluster",
    "helm": "needs a Kubernetes cluster: tests/deploy/test_chart_run.py has Helm install the chart",
    "kubectl": "needs a Kubernetes cluster",
    "mkdir": "belongs to the command after it",
    "scp": "needs another machine",
    "useradd": "changes the system",
    "userdel": "changes the system",
    "rm": "changes the system",
    "install": "changes the system",
    "cp": "changes the system",
    "systemctl": "changes the system",
    "python3": "makes an environment: tests/install does",
    "/opt/hearth/bin/pip": "installs from the internet: tests/install does from what is built here",
    "/opt/hearth/bin/hearth": "the same command is run elsewhere in this list",
    "pip": "installs from the internet: tests/install does from what is built here",
    ".venv/bin/python": "runs a part of these tests",
    ".venv/bin/ctest": "runs a part of make test-native",
    ".venv/bin/ruff": "changes files: make lint runs it without",
    **dict.fromkeys(
        ("aider", "claude", "cline", "cn", "codex", "npm", "open-webui", "opencode"),
        "run by `make clients`",
    ),
    "python": "models/*.py train for an hour with PyTorch",
}
# Commands of hearth itself that are not run, by their first words: the reason.
REFUSED: dict[str, str] = {
    "hearth pull": "downloads from the internet: tests/cluster/test_pull.py has a hub of its own",
}
# Commands whose first word may be a model.
TAKE_MODEL = ("generate", "chat", "bench", "root")
PROGRAMS = [
    ("stream_story.py", ["Once upon a time"]),
    ("async_many.py", ["The cat", "The dog"]),
]


class Scene:
    """A cluster with certificates and one without, each started when a command needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[ServiceProcess] = []
        self._roots: dict[bool, ServiceProcess] = {}
        self._url = ""
        pki.make(folder / "certs", [], 30)

    def root(self, secured: bool) -> ServiceProcess:
        """The root with certificates, or the one without."""
        if secured not in self._roots:
            self.service(["root", "--model", "demo", *(["--tls", "x"] if secured else [])])
        return self._roots[secured]

    def http(self) -> str:
        """The address of the HTTP port of a root whose model has a chat template."""
        if not self._url:
            model = self.folder / "demo"
            shutil.copytree(TOP / "models" / "demo", model)
            (model / "chat_template.jinja").write_text(
                "{% for m in messages %}{{ m.content }}\n{% endfor %}Once upon a time"
            )
            port = free_port()
            root = ServiceProcess(
                *("root", "--model", str(model), "--threads", "1", "--listen", "127.0.0.1:0"),
                *("--http", f"127.0.0.1:{port}"),
                log=self.folder / "http.log",
            )
            self._running.append(root)
            self._url = f"http://127.0.0.1:{port}"
        return self._url

    def curl(self, arguments: list[str]) -> None:
        """A request by curl, which must succeed."""
        words = [word.replace(HTTP, self.http()) for word in arguments]
        ran = subprocess.run(
            ["curl", "-sS", "--fail-with-body", *words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert len(ran.stdout) > 40

    def service(self, arguments: list[str]) -> ServiceProcess:
        """A root or worker, after its addresses are replaced."""
        name, *options = self.replaced(arguments)
        if "--listen" not in options:  # the documented port may be in use here
            options += ["--listen", "127.0.0.1:0"]
        log = self.folder / f"{len(self._running)}.log"
        if name == "worker":
            service: ServiceProcess = WorkerProcess(*options, log=log)
        else:
            service = ServiceProcess(name, "--threads", "1", *options, log=log)
            self._roots[("--tls" in options)] = service
        self._running.append(service)
        return service

    def run(self, arguments: list[str]) -> str:
        """The output of any other command, which must succeed."""
        ran = subprocess.run(
            [sys.executable, "-m", "hearth.cli.main", *self.replaced(arguments)],
            input="Hello\n",
            capture_output=True,
            text=True,
            env=clean_environ(),
            timeout=SECONDS,
            check=False,
        )
        assert ran.returncode == 0, f"hearth {shlex.join(arguments)}: {ran.stderr}"
        return ran.stdout

    def replaced(self, arguments: list[str]) -> list[str]:
        """The command with addresses, models and folders of this test for those of the text."""
        command, secured = arguments[0], "--tls" in arguments
        role = command if command in ("root", "worker") else "client"
        values = {
            "--model": "demo",
            "--tls": str(self.folder / "certs" / role),
            "--listen": "127.0.0.1:0",
            "--http": "127.0.0.1:0",
            "--cache-dir": str(self.folder / "slices"),
        }
        out: list[str] = []
        arguments = list(arguments)
        if command in TAKE_MODEL and len(arguments) > 1 and not arguments[1].startswith("-"):
            arguments[1] = "demo"
        rest = iter(arguments)
        for word in rest:
            if word == "--workers":
                after = arguments[arguments.index(word) + 1 :]
                wanted = len(list(itertools.takewhile(lambda w: not w.startswith("-"), after)))
                tls = ["--tls", "x"] if secured else []
                started = [self.service(["worker", *tls]) for _ in range(wanted)]
                out += [word, *(worker.address for worker in started)]
                for _ in range(wanted):
                    next(rest)
            elif word == "--root":
                next(rest)
                out += [word, self.root(secured).address]
            elif word in values:
                next(rest)
                out += [word, values[word]]
            else:
                out.append(word)
        if command in ("root", "worker") and "--listen" not in arguments:
            out += ["--listen", values["--listen"]]
        if arguments[:2] == ["certs", "init"]:
            out[2] = tempfile.mkdtemp(dir=self.folder)
        return out

    def end(self) -> None:
        for service in reversed(self._running):
            assert service.end() == 0, service.log.read_text()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.end()


def check(scene: Scene, command: str) -> None:
    """Run a command of `hearth`; find any other in the tables above."""
    word, *rest = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", word):
        word, *rest = rest
    if word == "hearth":
        if any(command.startswith(words) for words in REFUSED):
            return
        if rest[0] in ("root", "worker"):
            assert scene.service(rest).process.poll() is None
        else:
            assert scene.run(rest)
    elif word == "curl":
        scene.curl(rest)
    elif word == "make":
        (target, *_) = [part for part in rest if "=" not in part]
        assert target in MAKE, f"`{command}` is neither run nor listed with a reason"
    else:
        assert word in OTHERS, f"`{command}` is neither run nor listed with a reason"


@pytest.mark.parametrize(
    "shown", documented.shown_commands(), ids=lambda shown: f"{shown.file}: {shown.text[:60]}"
)
def test_every_command(scene: Scene, shown: Shown) -> None:
    check(scene, shown.text)


@pytest.mark.parametrize("shown", documented.shown_programs(), ids=lambda shown: shown.file)
def test_every_program(scene: Scene, shown: Shown) -> None:
    if HTTP in shown.text:
        out = StringIO()
        with redirect_stdout(out):
            exec(compile(shown.text.replace(HTTP, scene.http()), shown.file, "exec"), {})
        assert len(out.getvalue().split()) > 10
        return
    root = scene.root(secured=True)
    text = re.sub(r'"[\w.]+:\d+"', repr(root.address), shown.text)
    text = text.replace('"certs/client"', repr(str(scene.folder / "certs" / "client")))
    assert text != shown.text
    out = StringIO()
    with redirect_stdout(out):
        exec(compile(text, shown.file, "exec"), {})
    assert len(out.getvalue().split()) > 10


@pytest.mark.parametrize(("name", "prompts"), PROGRAMS)
def test_examples(scene: Scene, name: str, prompts: list[str]) -> None:
    """As their docstrings say, whose address is the one that `hearth root` listens on by itself."""
    path = TOP / "examples" / name
    assert f"python examples/{name} 127.0.0.1:7716 " in path.read_text()
    ran = subprocess.run(
        [sys.executable, str(path), scene.root(secured=False).address, *prompts],
        capture_output=True,
        text=True,
        env=clean_environ(),
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for prompt in prompts:
        assert prompt in ran.stdout
    assert len(ran.stdout.split()) > 20


def test_every_example_is_run() -> None:
    assert {path.name for path in (TOP / "examples").glob("*.py")} == {name for name, _ in PROGRAMS}


def test_what_is_mentioned_exists() -> None:
    """Between backticks in a sentence: the commands, their options, the targets."""
    makefile = (TOP / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    helps: dict[str, str] = {}
    for shown in documented.mentioned():
        word, name, *rest = shown.text.split()
        where = f"{shown.file}: `{shown.text}`"
        if word == "make":
            assert name in targets, where
        elif name in COMMANDS:
            if name not in helps:
                out = StringIO()
                with redirect_stdout(out):
                    assert main([name, "--help"]) == 0
                helps[name] = out.getvalue()
            for option in re.findall(r"--[a-z-]+", " ".join(rest)):
                assert option in helps[name], where
        else:
            assert name == "help" or name.isupper() or name.startswith("-"), where


def test_what_ci_runs_is_in_ci() -> None:
    ci = (TOP / ".ci" / "run").read_text()
    for target, reason in MAKE.items():
        if reason == "a stage of .ci/run":
            assert re.search(rf"make {target}\b", ci), target


def test_a_new_command_fails(scene: Scene) -> None:
    """A test of the test."""
    for command in ("make coffee", "brew install hearth"):
        with pytest.raises(AssertionError, match="neither run nor listed"):
            check(scene, command)
    text = "```\nmake a  # why\nhearth x \\\n  --y z\n```\n\n```python\n1\n```\n```\n │\n```\n"
    assert documented.commands(text) == ["make a", "hearth x --y z"]
    with pytest.raises(AssertionError, match="there is no command sing"):
        check(scene, "hearth sing")
