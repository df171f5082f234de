"""The command-line agents that people have, unchanged: an answer, a tool, errors, a lost worker.

`make clients` installs them. Each runs in a folder and with a HOME of its own. The model is
scripted: it calls the agent's own tool that runs a command, and answers behind its result.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import documented
import pytest
from harness import free_port
from installed_clients import (
    ANSWER,
    INSTALLED,
    NODE,
    Lossy,
    calls,
    formed_again,
    prompts,
    root_for,
    says,
)
from serving_fakes import FakeRunner

QUESTION = "Who are you?"
# What the tool's command prints, and the command does not have.
PRINTED = "tool-42"
COMMAND = "echo tool-$((40 + 2))"
INSTALLERS = ("npm", "pip")
_SECONDS = 120


@dataclass(frozen=True)
class Agent:
    """A program, run as its page in docs/clients shows: settings, environment, command.

    settings: where the page's settings go, below HOME. call: its own tool that runs COMMAND.
    more: further words of the command; environ: further variables. port: a variable with the
    port of a server that the program starts for itself.
    """

    page: str
    program: Path
    settings: str = ""
    call: tuple[str, Mapping[str, Any]] | None = None
    more: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    port: str = ""

    def run(self, url: str, home: Path, model: str = "tiny") -> str:
        """Its output for QUESTION, of both kinds. Ends what it leaves behind."""
        try:
            return self._commands(url, home, model)
        finally:
            end_all_of(home)

    def _commands(self, url: str, home: Path, model: str) -> str:
        text = (documented.CLIENTS / f"{self.page}.md").read_text()
        text = text.replace("http://localhost:7780", url).replace("smollm2", model)
        work = home / "work"
        work.mkdir(parents=True)
        for language, settings in documented.blocks(text):
            if language:
                path = home / self.settings
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(settings)
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "NO_COLOR": "1", **self.environ}
        if self.port:
            environ[self.port] = str(free_port())
        said = ""
        for command in documented.commands(text):
            word, *rest = shlex.split(command)
            if word == "export":
                name, _, value = rest[0].partition("=")
                environ[name] = value
            elif word not in INSTALLERS:
                words = [str(home / each) if each == self.settings else each for each in rest]
                more = self.more if QUESTION in words else ()
                said = self._run([*words, *more], work, environ)
        return said

    def _run(self, words: Sequence[str], work: Path, environ: Mapping[str, str]) -> str:
        try:
            done = subprocess.run(
                [str(self.program), *words],
                cwd=work,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"no end in {_SECONDS} s: {late.output!r}") from None
        return done.stdout.decode(errors="replace")


def end_all_of(home: Path) -> None:
    """Ends every process with this HOME, such as a server that a program left running."""
    mark = f"HOME={home}".encode()
    for found in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in found.read_bytes().split(b"\0"):
                os.kill(int(found.parent.name), signal.SIGKILL)


_MODULES = NODE / "node_modules"
AGENTS = {
    agent.page: agent
    for agent in (
        Agent(
            "codex",
            _MODULES / ".bin" / "codex",
            ".codex/config.toml",
            ("exec_command", {"cmd": COMMAND}),
            ["--skip-git-repo-check", "-c", "model_providers.hearth.request_max_retries=0"],
        ),
        Agent(
            "claude-code",
            _MODULES / "@anthropic-ai" / "claude-code-linux-x64" / "claude",
            call=("Bash", {"command": COMMAND, "description": "prints"}),
            more=["--allowedTools", "Bash"],
            environ={
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "CLAUDE_CODE_MAX_RETRIES": "0",
            },
        ),
        Agent(
            "continue",
            _MODULES / ".bin" / "cn",
            "config.yaml",
            ("Bash", {"command": COMMAND}),
            ["--auto"],
            {"CONTINUE_TELEMETRY_ENABLED": "0"},
        ),
        Agent(
            "opencode",
            _MODULES / "opencode-linux-x64" / "bin" / "opencode",
            ".config/opencode/opencode.json",
            ("bash", {"command": COMMAND, "description": "prints"}),
            environ={
                "OPENCODE_DISABLE_MODELS_FETCH": "1",
                "OPENCODE_DISABLE_AUTOUPDATE": "1",
                "OPENCODE_PERMISSION": '{"bash": "allow"}',
            },
        ),
        Agent(
            "cline",
            _MODULES / "@cline" / "cli-linux-x64" / "bin" / "cline",
            call=("run_commands", {"commands": [COMMAND]}),
            more=["-t", "60"],
            environ={"CLINE_TELEMETRY_DISABLED": "1"},
            port="CLINE_HUB_PORT",
        ),
        # It has no tools: it asks for changes of files as text.
        Agent(
            "aider",
            INSTALLED / "aider" / "bin" / "aider",
            more=[
                *("--no-git", "--no-check-update", "--no-show-release-notes", "--yes-always"),
                *("--no-show-model-warnings", "--no-pretty", "--no-detect-urls"),
                "--analytics-disable",
            ],
        ),
    )
}
WITH_TOOLS = [name for name, agent in AGENTS.items() if agent.call is not None]


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    found = AGENTS[request.param]
    if not found.program.exists():
        pytest.skip("`make clients` installs the clients")
    yield found


every = pytest.mark.parametrize("agent", AGENTS, indirect=True)


@every
def test_an_answer(agent: Agent, tmp_path: Path) -> None:
    with root_for(FakeRunner(says)) as root:
        assert ANSWER in agent.run(root.url, tmp_path)


@pytest.mark.parametrize("agent", WITH_TOOLS, indirect=True)
def test_a_tool_is_called_and_its_result_read(agent: Agent, tmp_path: Path) -> None:
    assert agent.call is not None
    with root_for(FakeRunner(calls(agent.call))) as root:
        assert ANSWER in agent.run(root.url, tmp_path)
        assert PRINTED in prompts(root)


@every
def test_an_unknown_model_is_named(agent: Agent, tmp_path: Path) -> None:
    with root_for(FakeRunner(says)) as root:
        said = " ".join(agent.run(root.url, tmp_path, "missing").split())
    assert ANSWER not in said
    assert "does not exist" in said or "may not exist" in said
    assert "missing" in said


@every
def test_a_prompt_that_is_too_long(agent: Agent, tmp_path: Path) -> None:
    with root_for(FakeRunner(says), context_size=256) as root:
        said = " ".join(agent.run(root.url, tmp_path).split()).lower()
    assert ANSWER.lower() not in said
    assert "too long" in said or "maximum context length" in said or "context window" in said


@every
def test_a_worker_is_lost_in_an_answer(agent: Agent, tmp_path: Path) -> None:
    """The text goes on where it was, and is whole."""
    runner = Lossy(says)
    with root_for(runner, pause_seconds=60) as root, formed_again(root, runner):
        assert ANSWER in agent.run(root.url, tmp_path)


@every
def test_a_stream_that_fails(agent: Agent, tmp_path: Path) -> None:
    """A part of an answer is not taken for the whole: the program asks again, or shows an error."""
    runner = Lossy(says)
    with root_for(runner) as root, formed_again(root, runner):
        said = agent.run(root.url, tmp_path)
    assert ANSWER in said or "pi2" in said or "error" in said.lower(), said


def test_every_page_is_of_a_client_that_runs() -> None:
    """A page has programs, which test_clients.py runs, or is of a program that has tests here."""
    for page in documented.CLIENTS.glob("*.md"):
        languages = {language for language, _ in documented.blocks(page.read_text())}
        assert languages & {"python", "js"} or page.stem in (*AGENTS, "open-webui", "index")
