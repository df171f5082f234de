"""Conversations to prompts: a model's own Jinja chat template, run in a sandbox.

Templates come with models and are programs. They get what Hugging Face gives them
(`raise_exception`, `strftime_now`, `tojson`, loop controls, `generation` blocks) and nothing else.
They run in a process with limits (chat_sandbox.py), which is started when first needed.
"""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hearth.common import system
from hearth.converter import chat_sandbox
from hearth.converter.errors import ModelError

# For the process to start, where its time is limited from here.
_START_SECONDS = 10.0
# Environment variables that are passed on: paths of Python and its packages, time zone.
_ENVIRONMENT = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str | None = "",
    eos_token: str | None = "",
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    limit: int | None = None,
    renderer: "Renderer | None" = None,
) -> str:
    """The text that a template makes of a conversation; it holds BOS where the template writes it.

    messages: {"role": ..., "content": ...} each. bos_token, eos_token: None leaves the name
    undefined. variables: further names for the template. All are JSON values. limit: the most bytes
    of the text. renderer: the process that runs it; by default one for all. conversation.py makes
    prompts of it.

    Raises:
        ModelError: the template is damaged, refuses the conversation, or takes too much time or
            memory; the message says why.
    """
    names = dict(variables or {})
    stated = {"bos_token": bos_token, "eos_token": eos_token}
    names |= {name: token for name, token in stated.items() if token is not None}
    names |= {"add_generation_prompt": add_generation_prompt}
    answer = (renderer or _RENDERER).render(
        {
            "template": template,
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "variables": names,
            "limit": limit,
        }
    )
    if "refusal" in answer:
        raise ModelError(answer["refusal"])
    return answer["text"]


class RendererError(ModelError):
    """A template was not rendered for a reason that may pass: the process that does it ended."""


class Renderer:
    """The process that runs templates, one at a time; restarted after a template that ended it."""

    def __init__(self, seconds: float = chat_sandbox.SECONDS) -> None:
        """seconds: time limit of one template."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, request: dict[str, Any]) -> dict[str, str]:
        """Send a request and return the answer: `text` or `refusal`. Raises ModelError."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end()  # ended by something else while idle
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            late = threading.Event()
            try:
                with self._watched(process, late):
                    chat_sandbox.write_frame(process.stdin, request)
                    answer: dict[str, str] = chat_sandbox.read_frame(process.stdout)
                return answer
            except (OSError, EOFError):
                code = self._end()
                if late.is_set() or system.ended_by(code, "SIGALRM"):
                    limit = f"takes longer than {self._seconds:g} s"
                else:
                    limit = f"ended the process that ran it (code {code}); it uses too much memory"
                problem = f"the chat template {limit}: it is damaged or malicious"
                raise RendererError(problem) from None
            except BaseException:
                self._end()  # an answer left unread would be taken for the next one
                raise

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    @contextmanager
    def _watched(self, process: subprocess.Popen[bytes], late: threading.Event) -> Iterator[None]:
        """End the process, and set `late`, if the block takes too long and it has no timer."""

        def end() -> None:
            late.set()
            process.kill()

        if system.has_timers():
            yield
            return
        timer = threading.Timer(_START_SECONDS + self._seconds, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        sandbox = str(Path(chat_sandbox.__file__).resolve())
        try:
            return subprocess.Popen(
                [sys.executable, "-P", sandbox, str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                # Ctrl-C at a terminal goes to the command, which then ends this process.
                **system.own_session(),
            )
        except OSError as error:
            problem = f"cannot start the process that runs chat templates: {error}"
            raise RendererError(problem) from error

    def _end(self) -> int:
        """Wait for the process; returns its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unwritten data has no reader any more
                    pipe.close()
        try:
            return process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


_RENDERER = Renderer()
atexit.register(_RENDERER.close)
