"""A newcomer's first hour at a terminal, as a transcript: chat, a hub, three machines.

    python tests/survival/first_run.py [--clone] [--out FILE] [--page]

Needs root, for the network namespaces that stand for machines. --clone begins with `git clone` and
`make demo`, and goes on with what was built there. --page writes docs/first-run.md: the transcript
without what differs between two runs. Ends with 1 where a step shows something else.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
PAGE = Path("docs") / "first-run.md"
sys.path.insert(0, str(TOP / "tests"))

from fake_hub import FakeHub, Repository  # noqa: E402
from harness import ServiceProcess, clean_environ  # noqa: E402
from scene import Network  # noqa: E402
from terminals import CTRL_D, ENTER, TerminalCommand  # noqa: E402

from hearth.converter.packaged import demo_directory  # noqa: E402

# Sequences by which a terminal moves its cursor or colours text, and the characters that do.
_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])|[\x00-\x08\x0b-\x1f\x7f]")
_PROMPT = ">(\x08|\x1b\\[2C| )"
_MODEL = "home/story"


class Transcript:
    """The commands and what they show, as text."""

    def __init__(self, out: Path | None) -> None:
        self._file = out.open("w") if out else sys.stdout

    def say(self, text: str) -> None:
        """Append text, without what only moves a cursor."""
        lines = [line.rstrip() for line in _CONTROL.sub("", text).splitlines()]
        self._file.write("\n".join(lines) + "\n")
        self._file.flush()

    def title(self, text: str) -> None:
        """Begin a part."""
        self.say(f"\n### {text}\n")

    def run(self, where: str, *words: str, environ: dict[str, str], before: tuple[str, ...]) -> str:
        """A command to its end; its standard output. It must succeed."""
        self.say(f"{where}$ {shlex.join(words)}")
        done = subprocess.run(
            [*before, sys.executable, "-m", "hearth.cli.main", *words[1:]],
            env=clean_environ(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        self.say((done.stderr + done.stdout).rstrip("\n"))
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}")
        return done.stdout.strip()

    @contextmanager
    def chat(
        self, where: str, *words: str, environ: dict[str, str], before: tuple[str, ...]
    ) -> Iterator[Talk]:
        """`hearth chat` at a terminal; it leaves by Ctrl-D."""
        self.say(f"{where}$ hearth {' '.join(words)}")
        with TerminalCommand(*words, environ=environ, before=before, columns=96) as terminal:
            talk = Talk(terminal)
            try:
                yield talk
                if talk.leave():
                    raise SystemExit(f"hearth {' '.join(words)} failed")
            finally:
                self.say(talk.text())


_PAGE_HEAD = """# A first run

The terminal of someone who tries Hearth for the first time, on one machine and then on three. It is
written by `tests/survival/first_run.py --page`, which types all of this and fails where it sees
something else. The hub is a small server on the same machine, the machines are network namespaces.
"""


def page(transcript: str, folder: str, hub: str = "https://huggingface.co") -> str:
    """docs/first-run.md: the transcript, shorter, without the names that each run makes up.

    folder: the temporary directory of the run.
    """
    text = transcript.replace(f"{folder}/", "").replace(f"{TOP}/", "")
    text = re.sub(r"http://127\.0\.0\.1:\d+", hub, text)
    text = re.sub(r"^.*\d+%\|.*\n", "", text, flags=re.MULTILINE)  # bars of progress
    text = re.sub(r"^certs/\S+\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d+ INFO \S+: ", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(>+ ?)(.*?)> \2$", r"> \2", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^>{2,} ", "> ", text, flags=re.MULTILINE)  # a prompt that was drawn again
    text = re.sub(r"^>$\n?", "", text, flags=re.MULTILINE)
    parts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)[1:]
    shown = [_PAGE_HEAD]
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        lines = (part for line in body.strip().splitlines() for part in _folded(line))
        shown.append(f"\n## {title}\n\n```text\n" + "\n".join(lines) + "\n```\n")
    return "".join(shown)


def _folded(line: str) -> list[str]:
    """A line as lines of at most 96 characters; a command stays in one, to be copied."""
    return [line] if re.match(r"\S*\$ ", line) else textwrap.wrap(line, 96) or [""]


class Talk:
    """A person at `hearth chat`."""

    def __init__(self, terminal: TerminalCommand) -> None:
        self._terminal = terminal
        self._shown: list[str] = []

    def type(self, text: str, expected: str) -> str:
        """Type a line at the prompt, and wait for what must be shown; what was shown."""
        self._shown.append(self._terminal.expect(_PROMPT))
        self._terminal.send(text)
        self._terminal.send(ENTER)
        self._shown.append(self._terminal.expect(expected))
        return self._shown[-1]

    def leave(self) -> int:
        """Press Ctrl-D; the exit code."""
        self._shown.append(self._terminal.expect(_PROMPT))
        self._terminal.send(CTRL_D)
        return self._terminal.finish()

    def text(self) -> str:
        """All that was on the screen."""
        return "".join(self._shown)


def alone(transcript: Transcript, folder: Path) -> None:
    """One machine: a chat, pasted text, commands, a full context."""
    environ = {"XDG_STATE_HOME": str(folder)}
    transcript.title("One machine: hearth chat demo")
    options = ("chat", "demo", "--max-tokens", "40", "--temperature", "0", "--context", "160")
    with transcript.chat("", *options, environ=environ, before=()) as talk:
        talk.type("/help", "ask the last question again")
        talk.type("Once upon a time", r"\n.+\n")
        pasted = "\x1b[200~There was a cat.\nIt had a red ball.\x1b[201~"
        talk.type(pasted, r"ball\.[^>]*\n.+\n")
        talk.type("exit", "Type /exit or press Ctrl-D to leave")
        for _ in range(9):
            shown = talk.type("The cat ran home to her mother", r"mother[^>]*\n.+\n")
            if "forgotten" in shown:
                return
        raise SystemExit("the context never became full")


def from_a_hub(transcript: Transcript, folder: Path) -> None:
    """A model that is pulled from a hub on the loopback, and used by its name."""
    demo = {path.name: path.read_bytes() for path in demo_directory().iterdir() if path.is_file()}
    pickled = {name: data for name, data in demo.items() if not name.endswith(".safetensors")}
    models = {
        _MODEL: Repository(demo),
        "home/old": Repository(pickled | {"pytorch_model.bin": b"x"}),
        "home/gated": Repository(demo, gated=True),
    }
    with FakeHub(models) as hub:
        transcript.title(f"A model from a hub (HF_ENDPOINT={hub.address})")
        environ = {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder), "HF_TOKEN": ""}
        for name in ("home/old", "home/gated", "home/stroy"):
            transcript.say(f"$ hearth pull {name}")
            done = subprocess.run(
                [sys.executable, "-m", "hearth.cli.main", "pull", name],
                env=clean_environ(environ),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 1:
                raise SystemExit(f"hearth pull {name}: exit code {done.returncode}")
            transcript.say(done.stderr.rstrip("\n"))
        transcript.run("", "hearth", "pull", _MODEL, environ=environ, before=())
    transcript.run("", "hearth", "models", environ=environ, before=())
    words = ("hearth", "generate", _MODEL, "-p", "The sea", "--max-tokens", "20")
    transcript.run("", *words, environ=environ, before=())


def together(transcript: Transcript, folder: Path) -> None:
    """Three machines with certificates: two workers, a root; a client on a fourth."""
    network = Network(3)
    transcript.title(f"Three machines, {', '.join(network.addresses)}, and a client")
    certs = folder / "certs"
    environ = {"XDG_STATE_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    transcript.run("", "hearth", "certs", "init", str(certs), environ=environ, before=())
    root, *workers = network.addresses
    with ExitStack() as stack:

        def serve(host: int, *words: str) -> ServiceProcess:
            place = network.before(host)
            transcript.say(f"{network.addresses[host]}$ hearth {' '.join(words)}")
            log = folder / f"host{host}.log"
            service = ServiceProcess(*words, log=log, environ=environ, before=place)
            stack.callback(service.end)
            transcript.say(f"hearth {words[0]} listening on {service.address}")
            return service

        for host in range(1, 1 + len(workers)):
            serve(host, "worker", "--listen", "0.0.0.0", "--tls", f"{certs}/worker")
        options = ("--listen", "0.0.0.0", "--tls", f"{certs}/root", "--workers", *workers)
        serve(0, "root", "demo", *options)
        client = ("--root", root, "--tls", f"{certs}/client")
        transcript.run("client", "hearth", "cluster", *client, environ=environ, before=())
        words = ("chat", *client, "--max-tokens", "40", "--temperature", "0")
        with transcript.chat("client", *words, environ=environ, before=()) as talk:
            talk.type("Once upon a time", r"\n.+\n")
    for host in range(3):
        transcript.say(f"\nThe log of {network.addresses[host]}:\n")
        transcript.say((folder / f"host{host}.log").read_text().rstrip("\n"))


def clone_and_build(transcript: Transcript, folder: Path) -> Path:
    """`git clone` and `make demo`; the clone."""
    transcript.title("Clone and build")
    clone = folder / "hearth"
    for words, place in (
        (["git", "clone", "-q", str(TOP), str(clone)], folder),
        (["make", "demo"], clone),
        (["make", ".venv/done/test"], clone),
    ):
        transcript.say(f"$ {' '.join(words)}")
        done = subprocess.run(
            words,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        transcript.say(done.stdout.rstrip("\n"))
    return clone


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clone", action="store_true", help="clone and build first")
    parser.add_argument("--out", type=Path, help="the file to write (default: standard output)")
    parser.add_argument("--page", action="store_true", help="write docs/first-run.md")
    options = parser.parse_args()
    out = ["--out", str(options.out.resolve())] if options.out else []
    out += ["--page"] if options.page else []
    with tempfile.TemporaryDirectory(prefix="hearth-first-run-") as name:
        folder = Path(name)
        if options.clone:
            built = folder / "build.txt"
            clone = clone_and_build(Transcript(built), folder)
            python, script = clone / ".venv" / "bin" / "python", "tests/survival/first_run.py"
            ran = subprocess.run([str(python), script, *out], cwd=clone, check=False)
            if options.out:
                options.out.write_text(built.read_text() + options.out.read_text())
            if options.page and not ran.returncode:
                shutil.copy(clone / PAGE, TOP / PAGE)
            raise SystemExit(ran.returncode)
        if not Network.entered(*out):
            return
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        os.environ["NO_PROXY"] = "*"
        written = folder / "transcript.txt" if options.page else options.out
        transcript = Transcript(written)
        alone(transcript, folder)
        from_a_hub(transcript, folder)
        together(transcript, folder)
        if options.page and written is not None:
            (TOP / PAGE).write_text(page(written.read_text(), name))


if __name__ == "__main__":
    main()
