"""Answers of a model, for the commands: run here for one command, or by a running root."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from hearth.cli import recommended
from hearth.cli.command import Options
from hearth.cli.forms import Form, form_of

if TYPE_CHECKING:
    from hearth.cli.session import Session
    from hearth.client import Client
    from hearth.client.client import GenerateStream
    from hearth.root.engine.mailbox import Delta, Done
    from hearth.root.engine.params import Sampling
    from hearth.root.engine.structure.constraint import Constraint
    from hearth.v1 import root_pb2

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Question:
    """One request: a text to continue, or the messages of a conversation."""

    text: str = ""
    messages: Messages = ()
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    # Called with each piece of reasoning, which then is not part of the text; with messages.
    on_reasoning: Callable[[str], object] | None = None
    # Of several answers to one prompt: a seed is that of the first.
    number: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an answer: its reason (eos, length, stop, context), tokens and seconds."""

    reason: str
    prompt_tokens: int
    token_ids: Sequence[int]
    prefill_seconds: float
    decode_seconds: float


class Answer(Protocol):
    """Pieces of text as they come; `ended` is set behind the last. Iterating raises HearthError."""

    ended: Ended | None

    def __iter__(self) -> Iterator[str]: ...

    def cancel(self) -> None:
        """Stop the work for it."""


class Model(Protocol):
    """A model that answers."""

    @property
    def name(self) -> str: ...

    @property
    def context_size(self) -> int:
        """Positions of one sequence, question and answer together."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def greedy(self) -> bool:
        """True if every answer to a question is the same."""

    @property
    def load_seconds(self) -> float: ...

    def ask(self, question: Question) -> Answer:
        """Begin an answer. Errors come when it is read."""


@contextmanager
def open_model(
    options: Options,
    quiet: bool = False,
    sequences: int = 1,
    sampling: Mapping[str, float] = recommended.GREEDY,
) -> Iterator[Model]:
    """The model of --root, or of MODEL until the block ends. Raises HearthError, ModelError.

    quiet: no progress of loading, no notes. sequences: answers at the same time, of a model that
    runs here. sampling: where neither the options nor the model say otherwise.
    """
    if options.root:
        from hearth.cli.connecting import connect

        with connect(options) as client:
            yield _RemoteModel(client, options, sampling, quiet)
        return
    from hearth.cli.session import open_session

    local = _LocalModel(options, sampling, quiet)
    with open_session(options, quiet=quiet, sequences=sequences) as session:
        local.start(session)
        yield local


def _constraint(form: Form) -> Constraint | None:
    """The constraint of a form; None for any text."""
    from hearth.root.engine.structure.constraint import Constraint, Kind

    for name, text in form.items():
        return Constraint(Kind(name), str(text), field=f"--{name.replace('_', '-')}")
    return None


def _ignore(text: str) -> None:
    """A piece of reasoning that nobody wants."""


def _numbered(seed: int | None, number: int) -> int | None:
    """The seed of one of several answers to a prompt."""
    return seed if seed is None or not number else (seed + number) % (1 << 64)


class _LocalModel:
    """A model that runs in this process."""

    def __init__(self, options: Options, defaults: Mapping[str, float], quiet: bool) -> None:
        """Raises HearthError for a value out of range, before a model is loaded."""
        from hearth.root.engine.params import GenerateParams

        self.name = options.model
        self.context_size = 0
        self.has_chat_template = False
        self.load_seconds = 0.0
        self._options, self._defaults, self._quiet = options, defaults, quiet
        self._constraint = _constraint(form_of(options))
        self._sampling = self._chosen({})
        self._max_tokens = options.max_tokens
        stop = tuple(getattr(options, "stop", ()))
        GenerateParams((), self._max_tokens, self._sampling, stop)

    def start(self, session: Session) -> None:
        """Use a model that is loaded."""
        self._session = session
        found = session.model.sampling_defaults if recommended.wanted(self._options) else {}
        self._sampling = self._chosen(found)
        if not self._quiet:
            recommended.note(self._options, found)
        self.context_size = session.engine.limits.context_size
        self.has_chat_template = bool(session.engine.tokenizer.chat_template)
        self.load_seconds = session.load_seconds

    @property
    def greedy(self) -> bool:
        """True if every answer to a question is the same."""
        return self._sampling.temperature == 0

    def _chosen(self, found: Mapping[str, float]) -> Sampling:
        from hearth.root.engine.params import Sampling

        values = recommended.chosen(self._options, found, self._defaults)
        return Sampling(**values, seed=self._options.seed, constraint=self._constraint)

    def ask(self, question: Question) -> Answer:
        """Begin an answer. Errors come when it is read."""
        return _LocalAnswer(self._events(question), question.on_reasoning)

    def _events(self, question: Question) -> Iterator[Delta | Done]:
        from hearth.root.api.prompt import Conversation, Prompt, input_ids
        from hearth.root.api.spoken import Listener
        from hearth.root.api.tools.choice import Tools, constrained, stops_of
        from hearth.root.api.tools.expected import expected_of
        from hearth.root.engine.mailbox import Done
        from hearth.root.engine.params import GenerateParams

        engine = self._session.engine
        given = Conversation(question.messages) if question.messages else Prompt(question.text)
        ids = input_ids(engine.tokenizer, given, self.context_size)
        sampling = replace(self._sampling, seed=_numbered(self._sampling.seed, question.number))
        expected = None
        if question.messages and question.on_reasoning is not None:
            expected = expected_of(engine.tokenizer, None, ids)
        params = GenerateParams(
            prompt=ids,
            max_tokens=self._max_tokens,
            sampling=constrained(sampling, Tools(), expected),
            stop=stops_of(tuple(question.stop), expected),
            ignore_eos=question.ignore_eos,
            visible=expected.visible if expected is not None else frozenset(),
        )
        listener = Listener(expected)
        for event in engine.generate(params):
            yield from listener.done(event) if isinstance(event, Done) else listener.delta(event)


class _LocalAnswer:
    """An answer of the engine in this process."""

    def __init__(
        self, events: Iterator[Delta | Done], on_reasoning: Callable[[str], object] | None
    ) -> None:
        self.ended: Ended | None = None
        self._events = events
        self._on_reasoning = on_reasoning

    def __iter__(self) -> Iterator[str]:
        from hearth.root.engine.mailbox import Done

        ids: list[int] = []
        for event in self._events:
            if isinstance(event, Done):
                usage = event.usage
                self.ended = Ended(
                    event.finish_reason.name.lower(),
                    usage.prompt_tokens,
                    ids,
                    usage.prefill_seconds,
                    usage.decode_seconds,
                )
            else:
                ids.extend(event.token_ids)
                if self._on_reasoning is not None and (thought := getattr(event, "reasoning", "")):
                    self._on_reasoning(thought)
                if event.text:
                    yield event.text

    def cancel(self) -> None:
        """End the request: closing the engine's iterator does."""
        close = getattr(self._events, "close", None)
        if close is not None:
            close()


class _RemoteModel:
    """A model that a running root serves."""

    def __init__(
        self, client: Client, options: Options, defaults: Mapping[str, float], quiet: bool
    ) -> None:
        self._client = client
        self._options, self._defaults, self._quiet = options, defaults, quiet
        self._form = form_of(options)
        self._facts: root_pb2.GetModelResponse | None = None
        self._sampling: dict[str, Any] = {}
        self.load_seconds = 0.0

    def _fact(self) -> root_pb2.GetModelResponse:
        """Facts of the model: asked for once. `generate` needs none of them."""
        if self._facts is None:
            self._facts = self._client.model()
        return self._facts

    @property
    def name(self) -> str:
        """The model's name, and the root."""
        return f"{self._fact().name} at {self._options.root}"

    @property
    def context_size(self) -> int:
        """Positions of one sequence."""
        return self._fact().context_size

    @property
    def has_chat_template(self) -> bool:
        """True if it takes messages."""
        return self._fact().has_chat_template

    @property
    def greedy(self) -> bool:
        """True if every answer to a question is the same."""
        return bool(self._chosen()["temperature"] == 0)

    def _chosen(self) -> dict[str, Any]:
        """The sampling; says once which of it the model recommends."""
        if not self._sampling:
            found: Mapping[str, float] = {}
            if recommended.wanted(self._options):
                found = recommended.of_message(self._fact().recommended)
            self._sampling = recommended.chosen(self._options, found, self._defaults)
            if not self._quiet:
                recommended.note(self._options, found)
        return self._sampling

    def ask(self, question: Question) -> Answer:
        """Begin an answer. Errors come when it is read."""
        from hearth.cli.connecting import show_waiting

        options = self._options
        stream = self._client.generate(
            None if question.messages else question.text,
            messages=question.messages or None,
            max_tokens=options.max_tokens,
            **self._chosen(),
            seed=_numbered(options.seed, question.number),
            stop=question.stop,
            ignore_eos=question.ignore_eos,
            on_waiting=show_waiting,
            separate_reasoning=question.on_reasoning is not None and bool(question.messages),
            on_reasoning=question.on_reasoning or _ignore,
            **self._form,
        )
        return _RemoteAnswer(stream)


class _RemoteAnswer:
    """An answer that a root streams."""

    def __init__(self, stream: GenerateStream) -> None:
        self.ended: Ended | None = None
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        yield from self._stream
        usage, reason = self._stream.usage, self._stream.finish_reason
        assert usage is not None and reason is not None  # the iteration ended without an error
        self.ended = Ended(
            str(reason).lower(),
            usage.prompt_tokens,
            list(self._stream.token_ids),
            usage.prefill_seconds,
            usage.decode_seconds,
        )

    def cancel(self) -> None:
        """Stop the root's work for it."""
        self._stream.cancel()
