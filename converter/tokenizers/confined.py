"""The tokenizer of a running root: encoding in a process with limits, decoding here.

The process (sandbox.py) has the library and the vocabulary's tables. The root has the bytes of each
token, a tenth of that. A text that takes the process too much computing or memory ends it, and is
refused; the next text starts another.
"""

import json
import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from hearth.common import system
from hearth.converter.errors import ModelError
from hearth.converter.model import Model
from hearth.converter.tokenizers import sandbox
from hearth.converter.tokenizers.base import Tokenizer

# Computing is limited by the process itself; this is for one that stands still.
_WAIT_FACTOR = 10.0
_LOAD_WAIT_SECONDS = 600.0
_END_SECONDS = 2.0
# Environment variables that are passed on: paths of Python, its packages and models, the locale.
_ENVIRONMENT = (
    "PATH", "HOME", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HF_HOME",
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "TIKTOKEN_CACHE_DIR",
    "DATA_GYM_CACHE_DIR", "TMPDIR", "TEMP", "TMP",
)  # fmt: skip
_MAX_MESSAGE = 256 << 20

_Table: TypeAlias = "tuple[bytes, array[int]]"


class ConfinedTokenizer(Tokenizer):
    """A tokenizer whose texts are encoded by another process. Safe to use from several threads.

    text_seconds: computing for a text, beyond what its size allows. started: called in any thread
    whenever the process started.
    """

    def __init__(
        self,
        source: str,
        pre: str | None = None,
        tokenizer: str | None = None,
        text_seconds: float = sandbox.TEXT_SECONDS,
        started: Callable[[], object] = lambda: None,
    ) -> None:
        """source, pre, tokenizer: as for open_model. Raises ModelError as Model.tokenizer does."""
        self._source = source
        self._arguments = [source, pre or "", tokenizer or ""]
        self._text_seconds = text_seconds
        self._started = started
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        # The last process did not end by itself.
        self._killed = False
        # The process has its tables for texts in which control tokens are not read.
        self._has_literal = False
        # When it had its last text, time.monotonic().
        self._used = time.monotonic()
        # All that the first process said; another one must say the same.
        self._said: tuple[dict[str, Any], _Table, _Table] | None = None
        self._said = facts, self._names, self._texts = self._start()
        self.vocab_size = facts["vocab_size"]
        self.bos_id = facts["bos_id"]
        self.eos_ids = frozenset(facts["eos_ids"])
        self.add_bos = facts["add_bos"]
        self.prefix = None if facts["prefix"] is None else tuple(facts["prefix"])
        self.suffix = tuple(facts["suffix"])
        self.chat_template = facts["chat_template"]
        self.named_templates = facts["named_templates"]
        self.special_tokens = facts["special_tokens"]
        self.control_ids = facts["control_ids"]
        self.gap_ids = facts["gap_ids"]
        self.strip_space = facts["strip_space"]

    def __enter__(self) -> "ConfinedTokenizer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def rest(self, seconds: float) -> float | None:
        """End the process if it had no text for so long; the next text starts it again.

        When it has been idle for that long, time.monotonic(); None where there is no process.
        """
        if not self._lock.acquire(blocking=False):
            return time.monotonic() + seconds  # it has a text now
        try:
            if self._process is None:
                return None
            idle_at = self._used + seconds
            if idle_at > time.monotonic():
                return idle_at
            self._end()
            return None
        finally:
            self._lock.release()

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        return self._ask({"text": text, "parse_special": parse_special}, len(text.encode()))

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        size = sum(len(piece.encode()) if isinstance(piece, str) else 1 for piece in pieces)
        return self._ask({"pieces": list(pieces)}, size)

    def token_bytes(self, token: int) -> bytes:
        return _item(self._texts, token)

    def _name(self, token: int) -> str:
        return _item(self._names, token).decode()

    def _ask(self, request: dict[str, Any], size: int) -> list[int]:
        """Send a request about a text of `size` bytes; the ids. Raises ModelError."""
        seconds = self._text_seconds + size * sandbox.SECONDS_PER_BYTE
        data = json.dumps(request | {"bytes": size, "seconds": seconds}).encode()
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._end()  # ended by something else while idle
            if self._connection is None:
                self._start()
            assert self._connection is not None
            try:
                literal = not request.get("parse_special")
                wait = seconds * _WAIT_FACTOR
                if literal and not self._has_literal:
                    wait += _LOAD_WAIT_SECONDS
                self._connection.send_bytes(data)
                kind, content = self._receive(wait)
                self._has_literal |= literal
            except (OSError, EOFError):
                raise ModelError(f"the tokenizer {self._reason(seconds)} for this text") from None
            except BaseException:
                self._end()  # an answer left unread would be taken for the next one
                raise
            finally:
                self._used = time.monotonic()
        if kind != sandbox.IDS:
            raise ModelError(content.decode(errors="replace"))
        ids = array("i")
        ids.frombytes(content)
        return ids.tolist()

    def _start(self) -> tuple[dict[str, Any], _Table, _Table]:
        """Start the process; what it says of the tokenizer.

        Raises ModelError, also where it is not what the first process said.
        """
        here, there = Pipe()
        words = [sys.executable, "-P", "-m", sandbox.__name__, str(there.fileno())]
        try:
            self._process = subprocess.Popen(
                [*words, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                **system.hand_over(there),
                # Ctrl-C at a terminal goes to the command, which then ends this process.
                **system.own_session(),
            )
        except OSError as error:
            here.close()
            raise ModelError(f"cannot start the process of the tokenizer: {error}") from error
        finally:
            there.close()
        self._connection, self._has_literal = here, False
        try:
            kind, facts = self._receive(_LOAD_WAIT_SECONDS)
            if kind == sandbox.REFUSAL:
                self._end()
                raise ModelError(facts.decode(errors="replace"))
            names, texts = (self._receive(_LOAD_WAIT_SECONDS)[1] for _ in range(2))
        except (OSError, EOFError):
            reason = self._reason(sandbox.LOAD_SECONDS)
            raise ModelError(f"the tokenizer of {self._source} {reason} to load") from None
        except BaseException:
            self._end()
            raise
        said = json.loads(facts), _table(names), _table(texts)
        if self._said not in (None, said):
            self._end()
            raise ModelError(
                f"the tokenizer's files of {self._source} changed while in use; restart the root "
                "(or this command) to load the new ones, or restore the files"
            )
        self._used = time.monotonic()
        self._started()
        return said

    def _receive(self, seconds: float) -> tuple[bytes, bytes]:
        """A message: its kind and its content. Raises OSError and EOFError where none comes."""
        assert self._connection is not None
        if not self._connection.poll(seconds):
            raise TimeoutError
        message = self._connection.recv_bytes(_MAX_MESSAGE)
        return message[:1], message[1:]

    def _reason(self, seconds: float) -> str:
        code = self._end()
        if self._killed or system.ended_by(code, "SIGPROF", "SIGKILL"):
            return f"takes more than {seconds:.3g} s of computing: it is damaged or malicious"
        return f"ended its process (code {code}): it needs too much memory, or is damaged,"

    def _end(self) -> int:
        """End the process; its exit code, 0 without one."""
        process, self._process = self._process, None
        self._killed = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is None:
            return 0
        try:
            return process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            self._killed = True
            return process.wait()


@contextmanager
def confined(
    model: Model,
    source: str,
    pre: str | None = None,
    tokenizer: str | None = None,
    started: Callable[[], object] = lambda: None,
) -> Iterator[Tokenizer]:
    """The tokenizer of an open model for as long as the block lasts, in a process with limits.

    source, pre, tokenizer: as the model was opened. started: called in any thread whenever the
    process started. A tokenizer that no file says anything about needs none. Raises ModelError as
    Model.tokenizer does.
    """
    if model.tokenizer_source.plain:
        yield model.tokenizer()
        return
    with ConfinedTokenizer(source, pre, tokenizer, started=started) as made:
        yield made


def _table(data: bytes) -> _Table:
    """The strings that sandbox.table wrote, joined; their places, and their end."""
    width = array("i").itemsize
    count = int.from_bytes(data[:width], sys.byteorder)
    lengths = array("i")
    lengths.frombytes(data[width : width * (count + 1)])
    places = array("i", [0])
    for length in lengths:
        places.append(places[-1] + length)
    return data[width * (count + 1) :], places


def _item(table: _Table, id: int) -> bytes:
    data, places = table
    return data[places[id] : places[id + 1]] if 0 <= id < len(places) - 1 else b""
