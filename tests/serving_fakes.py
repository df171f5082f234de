"""Stand-ins for a model, so that the root's engine and service are tested without weights.

The runner keeps a paged KV cache of tokens and computes each next token from its contents. So a
page shared by two sequences, a gap in positions or a lost token changes the text.
"""

import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from converter_builders import tiny_spec

from hearth.common.candidates import WHOLE_ROWS, Candidates, Tails
from hearth.converter.pooling import Pooling
from hearth.converter.spec import ModelSpec
from hearth.converter.tokenizers.base import Tokenizer
from hearth.root.api.frontend import Drain, Frontend
from hearth.root.api.grpc.server import RootServer
from hearth.root.engine.engine import Engine
from hearth.root.engine.interfaces import SamplerFactory
from hearth.root.engine.params import Sampling
from hearth.root.scheduling.batch import Batch, Limits, SequenceStep, StepOutput
from hearth.root.status.activity import Activity
from hearth.root.status.history import History
from hearth.v1 import root_pb2
from hearth.worker.page_tables import PageTables

if TYPE_CHECKING:
    from hearth.root.api.http.server import HttpServer

BOS, EOS = 256, 257
VOCAB = 258

NextToken = Callable[[tuple[int, ...]], int]


class ByteTokenizer(Tokenizer):
    """One token a byte, then begin- and end-of-sequence, which are written <s> and </s>."""

    def __init__(self, chat_template: str | None = None, add_bos: bool = True) -> None:
        self.vocab_size = VOCAB
        self.bos_id = BOS
        self.eos_ids = frozenset({EOS})
        self.add_bos = add_bos
        self.chat_template = chat_template
        self.control_ids = {"<s>": BOS, "</s>": EOS}
        self.special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}

    def _encode(self, text: str, parse_special: bool) -> list[int]:
        ids: list[int] = []
        for part in re.split("(</?s>)", text) if parse_special else [text]:
            ids += {"<s>": [BOS], "</s>": [EOS]}.get(part, part.encode())
        return ids

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < BOS else b""

    def _name(self, token: int) -> str:
        return {BOS: "<s>", EOS: "</s>"}.get(token, chr(token))


def letters(history: tuple[int, ...]) -> int:
    """A next token that depends on every token before it: a lower-case letter or a space."""
    return b"abcdefghijklmnopqrstuvwxyz "[zlib.crc32(repr(history).encode()) % 27]


def says(text: str) -> NextToken:
    """Next tokens that say a text after the last "[assistant]", then the end."""
    data = text.encode()

    def next_token(history: tuple[int, ...]) -> int:
        said = bytes(token for token in history if token < 256)
        place = len(said) - said.rindex(b"[assistant]") - len(b"[assistant]")
        return data[place] if place < len(data) else EOS

    return next_token


def script(text: str | bytes, prompt: str = "") -> NextToken:
    """Next tokens that say `text` after BOS and `prompt`, then EOS."""
    data = text.encode() if isinstance(text, str) else text
    start = 1 + len(prompt.encode())

    def next_token(history: tuple[int, ...]) -> int:
        index = len(history) - start
        return data[index] if index < len(data) else EOS

    return next_token


# Positions before which a state cannot go back, and the tokens that it has seen.
State: TypeAlias = tuple[int, tuple[int, ...]]


@dataclass
class FakeRunner:
    """Steps in no time, or in `seconds`; holds every rule of a Batch on the way."""

    next_token: NextToken = letters
    page_size: int = 4
    max_step_tokens: int = 1 << 30
    seconds: float = 0.0
    # When set, each step waits for it (and it stays set until cleared).
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    fail_with: Exception | None = None
    depth: int = 1
    batches: list[Batch] = field(default_factory=list)
    cache: dict[int, list[int | None]] = field(default_factory=dict)
    tables: PageTables = field(init=False)
    # Keep a state of each sequence: its tokens, and before how many it cannot go back. Snapshots by
    # number.
    recurrent: bool = False
    states: dict[int, State] = field(default_factory=dict)
    snapshots: dict[int, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = PageTables(1 << 16, 1 << 24, self.page_size)

    def submit(
        self,
        batch: Batch,
        candidates: Candidates = WHOLE_ROWS,
        hidden: bool = False,
    ) -> Future[StepOutput]:
        """Computes in the calling thread, as a cluster of one stage does."""
        step: Future[StepOutput] = Future()
        try:
            step.set_result(self.run(batch, candidates))
        except Exception as error:
            step.set_exception(error)
        return step

    def run(self, batch: Batch, candidates: Candidates = WHOLE_ROWS) -> StepOutput:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.seconds:
            time.sleep(self.seconds)
        self.batches.append(batch)
        if self.fail_with is not None:
            error, self.fail_with = self.fail_with, None
            raise error
        return self.read(batch, self.write(batch))

    def forget_tables(self) -> None:
        """A new plan of the same shards: sequences are gone, pages and snapshots are not."""
        self.tables.end_plan()
        self.states.clear()

    def write(self, batch: Batch) -> list[list[int]]:
        """Puts the tokens of a step into the cache; the page table of each sequence."""
        assert 1 <= batch.rows <= self.max_step_tokens
        assert batch.tokens == tuple(t for step in batch.sequences for t in step.tokens)
        self.tables.forget(batch.reset, batch.ended)
        tables: list[list[int]] = []
        for step in batch.sequences:
            assert len(step.tokens) >= 1
            table = self.tables.step(
                step.seq_id, step.position, len(step.tokens), step.kept_pages, step.new_pages
            )
            pages = table.tolist()
            tables.append(pages)
            if self.recurrent:
                self._advance(step)
            # Never more pages than the positions so far need.
            assert len(pages) == -(-(step.position + len(step.tokens)) // self.page_size)
            for i, token in enumerate(step.tokens):
                page, offset = divmod(step.position + i, self.page_size)
                slots = self.cache.setdefault(pages[page], [None] * self.page_size)
                slots[offset] = token
        return tables

    def _advance(self, step: SequenceStep) -> None:
        """Adds a step's tokens to the state of its sequence."""
        fresh = step.position == 0
        settled, tokens = (0, ()) if fresh else self.states.get(step.seq_id, (0, ()))
        if step.restore is not None:
            settled, tokens = self.snapshots[step.restore]
        assert settled <= step.position <= len(tokens), "the state is that of another position"
        made = tokens[: step.position] + step.tokens
        assert settled <= len(made) - step.undo, "the state cannot go back so far"
        self.states[step.seq_id] = (len(made) - step.undo, made)
        if step.save is not None:
            self.snapshots[step.save] = self.states[step.seq_id]

    def read(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
        """Logits of the rows that want them, from what the cache holds now."""
        logits = np.zeros((len(batch.output_rows), VOCAB), np.float32)
        row = 0
        for step, pages in zip(batch.sequences, tables, strict=True):
            end = step.position + len(step.tokens)
            if self.recurrent and step.seq_id in self.states:
                known = self.states[step.seq_id][1][:end]
                assert known == self._history(pages, end), "the state is of other tokens"
            for length in range(end - step.outputs + 1, end + 1):
                logits[row, self.next_token(self._history(pages, length))] = 10.0
                row += 1
        assert row == len(logits)
        return StepOutput(logits, hidden=hidden_states(batch))

    def _history(self, pages: Sequence[int], length: int) -> tuple[int, ...]:
        history = []
        for position in range(length):
            page, offset = divmod(position, self.page_size)
            token = self.cache[pages[page]][offset]
            assert token is not None, f"position {position} was never computed"
            history.append(token)
        return tuple(history)


def hidden_states(batch: Batch) -> npt.NDArray[np.float32]:
    """Final hidden states of a step: of each row the token, its position and a constant."""
    rows = [
        [token, step.position + index, 1.0, 0, 0, 0, 0, 0]
        for step in batch.sequences
        for index, token in enumerate(step.tokens)
    ]
    return np.array(rows, np.float32)


class NoisyRunner(FakeRunner):
    """Logits that are random, but the same for the same tokens so far."""

    def read(self, batch: Batch, tables: list[list[int]]) -> StepOutput:
        rows: list[npt.NDArray[np.float64]] = []
        for step, pages in zip(batch.sequences, tables, strict=True):
            end = step.position + len(step.tokens)
            for length in range(end - step.outputs + 1, end + 1):
                seed = hash(self._history(pages, length)) & 0xFFFFFFFF
                rows.append(np.random.default_rng(seed).normal(size=VOCAB) * 3)
        return StepOutput(np.array(rows, np.float32).reshape(-1, VOCAB))


class Greedy:
    """A sampler of the best logit."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        self.accepted: list[int] = []

    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        return 0.0, 0, ahead

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        ids: npt.NDArray[np.uint32] | None = None,
        tails: Tails | None = None,
    ) -> int:
        best = int(logits.argmax())
        return best if ids is None else int(ids[best])

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def accept_prompt(self, tokens: npt.NDArray[np.uint32]) -> None:
        self.accepted += tokens.tolist()


def expected(prompt: Sequence[int], count: int, next_token: NextToken = letters) -> list[int]:
    """Tokens of one sequence that runs alone."""
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(tuple(history)))
    return history[len(prompt) :]


@dataclass
class FakeCluster:
    """A cluster that is what the test says."""

    state: root_pb2.ClusterState.ValueType = root_pb2.CLUSTER_STATE_SERVING
    reason: str = ""
    callbacks: list[Callable[[root_pb2.ClusterStatus], object]] = field(default_factory=list)
    weight_bytes: int = 0
    # Shown instead of a status made of the above.
    shown: root_pb2.ClusterStatus | None = None

    def status(self) -> root_pb2.ClusterStatus:
        if self.shown is not None:
            return self.shown
        nodes = [root_pb2.ClusterNode(weight_bytes=self.weight_bytes)] if self.weight_bytes else []
        return root_pb2.ClusterStatus(state=self.state, reason=self.reason, epoch=1, nodes=nodes)

    def subscribe(
        self, callback: Callable[[root_pb2.ClusterStatus], object]
    ) -> Callable[[], object]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def change(self, state: root_pb2.ClusterState.ValueType, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._call_back()

    def show(self, status: root_pb2.ClusterStatus) -> None:
        self.shown = status
        self._call_back()

    def _call_back(self) -> None:
        for callback in list(self.callbacks):
            callback(self.status())


@dataclass(frozen=True)
class FakeModel:
    spec: ModelSpec
    weight_type: str = "q4_0"
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    aliases: Sequence[str] = ()
    pooling: Pooling = field(default_factory=Pooling)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

# With tools, calls in the most common form, and reasoning.
TOOL_TEMPLATE = (
    "{{ bos_token }}{% for t in tools or [] %}[tool]{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>"
    "{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


class Root:
    """A root on a free port of the loopback, with a stand-in for the model and the workers."""

    def __init__(
        self,
        runner: FakeRunner | None = None,
        *,
        chat_template: str | None = TEMPLATE,
        max_streams: int = 256,
        server_options: Mapping[str, Any] = MappingProxyType({}),
        http: bool = False,
        http_options: Mapping[str, Any] = MappingProxyType({}),
        any_model: bool = False,
        share_prefixes: bool = False,
        sampler_factory: SamplerFactory | None = None,
        pooling: Pooling | None = None,
        controls: Mapping[str, int] = MappingProxyType({}),
        pause_seconds: float = 0.0,
        drain: Drain | None = None,
        activity: Callable[[], Activity] = Activity,
        **limits: int,
    ) -> None:
        """server_options: further arguments of RootServer. http: serve HTTP too, at `url`.

        http_options: further arguments of HttpServer. drain: see Frontend. activity: what
        `/cluster` shows of the root's work. controls: further control tokens; no text has the
        bytes 0xF8 and above.
        """
        self.runner = runner or FakeRunner()
        # True if requests wait for a lost cluster.
        self.pauses = pause_seconds > 0
        values: dict[str, Any] = {
            "context_size": 64,
            "max_pages": 256,
            "page_size": 4,
            **limits,
        }
        tokenizer = ByteTokenizer(chat_template)
        tokenizer.control_ids = {**tokenizer.control_ids, **controls}
        self.engine = Engine(
            self.runner,
            tokenizer,
            Limits(**values),
            sampler_factory=sampler_factory or Greedy,
            pause_seconds=pause_seconds,
        )
        self.cluster = FakeCluster()
        spec = tiny_spec(
            hidden_size=8, heads=2, kv_heads=1, head_size=4, ffn_size=16, vocab_size=VOCAB,
            context_size=64, tied=True,
        )  # fmt: skip
        model = FakeModel(spec, pooling=pooling or Pooling())
        self.frontend = Frontend(
            self.engine,
            model,
            self.cluster,
            max_streams=max_streams,
            drain=drain,
            share_prefixes=share_prefixes,
        )
        self._http_options = http_options
        self.http: HttpServer | None = None
        if http:
            # Here, so that other tests do not load it.
            from hearth.root.api.http import requests, server

            history = History()
            self.frontend.subscribe(history.note)
            services = requests.Services(
                self.frontend,
                any_model,
                history=history,
                activity=activity,
            )
            self.http = server.HttpServer("127.0.0.1:0", services, **http_options)
        beside = [self.http] if self.http is not None else []
        self.server = RootServer("127.0.0.1:0", self.frontend, beside=beside, **server_options)
        self.address = self.url = ""
        # Calls made before the root stops, such as the end of a page that asks it things.
        self.before_stop: list[Callable[[], object]] = []

    def __enter__(self) -> "Root":
        self.engine.start()
        self.address = f"127.0.0.1:{self.server.start()}"
        if self.http is not None:
            scheme = "https" if "security" in self._http_options else "http"
            self.url = f"{scheme}://127.0.0.1:{self.http.port}"
        return self

    def __exit__(self, *_: object) -> None:
        for call in self.before_stop:
            call()
        if self.runner.gate is not None:
            self.runner.gate.set()
        self.server.stop(0)
        assert self.engine.stop(finish=False)

    def steps_when_quiet(self) -> int:
        """Steps made, once no more are made."""
        for _ in range(200):
            before = len(self.runner.batches)
            time.sleep(0.05)
            if len(self.runner.batches) == before:
                return before
        raise AssertionError("the engine never came to rest")


def prompt_of(root: Root) -> str:
    """The prompt of the first request."""
    tokens = [token for batch in root.runner.batches for token in batch.tokens]
    text = bytes(token for token in tokens if token < 256).decode()
    return text[: text.rindex("[assistant]")]
