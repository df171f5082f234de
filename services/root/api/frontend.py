"""Requests from admission to their last token, without a transport.

    Generation -> admit -> tokenize (in a thread) -> Engine.submit -> Answer: Delta*, Done

The gRPC service (grpc/) maps messages to these values and back; any other face does the same. Every
failure is a HearthError; a face maps its code or reason to its own status.
"""

import asyncio
import functools
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from hearth.common.errors import HearthError, Reason
from hearth.converter.errors import ModelError
from hearth.converter.pooling import Pooling
from hearth.converter.spec import ModelSpec
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.gaps import gap_tokens
from hearth.root.api.answer import Answer, past_deadline
from hearth.root.api.embedding import MAX_INPUTS, Vector, in_turn
from hearth.root.api.fairness import CLIENT, Places, Turns
from hearth.root.api.prompt import (
    Conversation,
    Input,
    TokenIds,
    check_count,
    check_size,
    conversation_text,
    input_ids,
)
from hearth.root.api.signals import Signal
from hearth.root.engine import errors
from hearth.root.engine.mailbox import Delta, Done, Sink, Waiting
from hearth.root.engine.params import GenerateParams, Sampling, check_ids, check_text, invalid
from hearth.root.engine.request import RequestHandle
from hearth.root.engine.structure.constraint import Constraint
from hearth.root.engine.structure.matching import Matcher
from hearth.root.scheduling.batch import Limits
from hearth.root.status.describe import waiting_reason

if TYPE_CHECKING:
    from hearth.root.api.tools.choice import Tools
    from hearth.root.api.tools.expected import Expected
    from hearth.v1.root_pb2 import ClusterStatus

# Answers and watches open at once. Each answer costs a mailbox of at most one context of tokens.
MAX_STREAMS = 256
# Texts tokenized at once, and conversations rendered at once; others wait for their turn. Templates
# come with models: one that takes its whole time must not hold up prompts.
_TOKENIZERS = 2
_RENDERERS = 2
# Constraints compiled at once, and the time that a request waits for its own.
_COMPILERS = 1
_COMPILE_SECONDS = 20.0
_SHUTDOWN_POLL_SECONDS = 0.02

P = ParamSpec("P")
T = TypeVar("T")


class ServedModel(Protocol):
    """The facts of a model that clients may read; hearth.converter.Model has them."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def weight_type(self) -> str: ...

    @property
    def sampling_defaults(self) -> Mapping[str, float]: ...
    @property
    def aliases(self) -> Sequence[str]: ...

    @property
    def pooling(self) -> Pooling: ...


class RequestEngine(Protocol):
    """The engine, as far as requests need it: hearth.root.engine's, or one that is loaded later."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def limits(self) -> Limits: ...

    def check(self, params: GenerateParams) -> None:
        """Raise HearthError for what `submit` would refuse as things are now."""

    def matcher(self, constraint: Constraint) -> Matcher:
        """Compile a constraint for `submit`; may compute for a second. Raises HearthError."""

    def submit(
        self, params: GenerateParams, sink: Sink, matcher: Matcher | None = None
    ) -> RequestHandle:
        """Queue a request. matcher: of its constraint."""


class WatchedCluster(Protocol):
    """The cluster, as far as clients see it. Called from the event loop: must not block."""

    def status(self) -> "ClusterStatus": ...

    def subscribe(self, callback: Callable[["ClusterStatus"], object]) -> Callable[[], object]:
        """Call back, from any thread, at every change; until the function returned is called."""


Drain = Callable[[str, bool], "Future[ClusterStatus]"]


@dataclass(frozen=True, slots=True)
class Generation:
    """A request for text. HearthError INVALID_ARGUMENT for values out of range.

    max_tokens: 0 means as many as the context has room for. stop: texts that end the answer.
    request_id: for logs; "" draws one.
    """

    input: Input
    max_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    request_id: str = ""
    # Log probabilities of each token and of so many alternatives; None for none.
    top_logprobs: int | None = None
    # Those of the prompt's tokens, too: see GenerateParams.
    prompt_logprobs: bool = False
    # A vector of the input instead of a text: see GenerateParams.
    pooling: str = ""
    # False: compute the whole prompt, and keep nothing of it for later requests.
    prefix_cache: bool = True
    # Control tokens whose names are part of the answer's text, for a parser of it.
    visible: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self.params(())

    def params(self, prompt: tuple[int, ...], salt: bytes = b"") -> GenerateParams:
        """The same for the engine, with the input as token ids."""
        return GenerateParams(
            prompt,
            self.max_tokens,
            self.sampling,
            self.stop,
            self.ignore_eos,
            self.top_logprobs,
            self.prompt_logprobs,
            self.pooling,
            self.prefix_cache,
            salt,
            self.visible,
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The running model. `weight_type`: the name of a type, such as "f16" or "q4_k"."""

    name: str
    architecture: str
    parameters: int
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    vocab_size: int
    # Positions of one sequence in this cluster, prompt and answer together.
    context_size: int
    weight_type: str
    has_chat_template: bool
    # Sampling that the model's makers recommend, by the names of `Sampling`.
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    # The pooling of its vectors that its files name; "" where they name none.
    pooling: str = ""
    # Names besides `name` that mean it.
    aliases: Sequence[str] = ()


class _Threads:
    """The threads that tokenize and render, and the turns of clients at them."""

    def __init__(self) -> None:
        self.tokenizers = ThreadPoolExecutor(_TOKENIZERS, "tokenizing")
        self.renderers = ThreadPoolExecutor(_RENDERERS, "rendering")
        self.compilers = ThreadPoolExecutor(_COMPILERS, "compiling")
        self.turns = {
            self.tokenizers: Turns(_TOKENIZERS, _TOKENIZERS),
            self.renderers: Turns(_RENDERERS, _RENDERERS),
            self.compilers: Turns(_COMPILERS, _COMPILERS),
        }


@dataclass(frozen=True, slots=True)
class Prefill:
    """Progress of a request's prompt: positions computed, and all."""

    request_id: str
    position: int
    total: int


class Frontend:
    """Serves the requests of all faces. Lives on one event loop; made anywhere."""

    def __init__(
        self,
        engine: RequestEngine,
        model: ServedModel,
        cluster: WatchedCluster,
        *,
        max_streams: int = MAX_STREAMS,
        drain: Drain | None = None,
        pooling: str = "",
        share_prefixes: bool = False,
        beside: "Frontend | None" = None,
    ) -> None:
        """drain: takes a worker out, by address or name, or (True) lets it in again.

        pooling: of vectors where a request names none; "" for the model's own.
        share_prefixes: between clients too, which may then find out by time what others sent.
        beside: a frontend whose places and threads this one shares.
        """
        self._pooling = pooling
        self._engine = engine
        self._model = model
        self._cluster = cluster
        self._max_streams = max_streams
        self._drain = drain
        self._share_prefixes = share_prefixes
        self._places: Places = beside._places if beside else Places(max_streams, "streams")
        self._answers: set[Answer] = set()
        # Of each answer: ends its view of the cluster.
        self._unsubscribe: dict[Answer, Callable[[], object]] = {}
        self._watchers: set[Signal] = set()
        self._shutting_down = False
        self._threads: _Threads = beside._threads if beside else _Threads()
        self._tokenizers, self._renderers = self._threads.tokenizers, self._threads.renderers
        self._compilers = self._threads.compilers

    @property
    def chat_template(self) -> str:
        """The model's chat template (Jinja); "" without one."""
        return self._engine.tokenizer.chat_template or ""

    @property
    def sequences(self) -> int:
        """Sequences of full context that the KV cache has room for, 1 at least."""
        limits = self._engine.limits
        return max(1, limits.max_pages * limits.page_size // limits.context_size)

    @property
    def open_answers(self) -> int:
        """Answers that run or wait."""
        return len(self._answers)

    def prefills(self) -> list[Prefill]:
        """The calling client's requests whose prompt is being read, or waits for that."""
        client = CLIENT.get()
        return [
            Prefill(answer.request_id, position, answer.prompt_tokens)
            for answer in self._answers
            if answer.client == client and (position := answer.prefilled) is not None
        ]

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; empty for a control token."""
        return self._engine.tokenizer.token_bytes(token)

    def token_name(self, token: int) -> str:
        """The text of a token; of a control token its name."""
        data = self.token_bytes(token)
        return data.decode("utf-8", "replace") or self._engine.tokenizer.token_text(token)

    @property
    def max_streams(self) -> int:
        """Answers and watches that may be open at once."""
        return self._max_streams

    async def submit(self, request: Generation, *, deadline: float | None = None) -> Answer:
        """Queue a request. The caller must use the answer in a `with` block, or close it.

        deadline: when the answer must be complete, in the running loop's time (seconds).
        Raises HearthError for what can be known before the first step: SHUTTING_DOWN, QUEUE_FULL
        (too many streams or requests), CLUSTER_NOT_READY, INVALID_ARGUMENT, PROMPT_TOO_LONG,
        NO_CHAT_TEMPLATE, DEADLINE.
        """
        client = CLIENT.get()
        self._admit(client)
        request_id = request.request_id or secrets.token_hex(6)
        forget = functools.partial(self._forget, client)
        answer = Answer(request_id, deadline, forget, client)
        self._answers.add(answer)
        try:
            ids = await self._input_ids(request.input, deadline)
            params = request.params(ids, b"" if self._share_prefixes else client.encode())
            self._engine.check(params)
            matcher = await self._matcher(request.sampling.constraint)
            handle = self._engine.submit(params, answer.mailbox, matcher)
        except BaseException as error:
            answer.close(error)
            raise
        answer.start(handle, len(ids))
        self._show_waiting(answer)
        return answer

    def _show_waiting(self, answer: Answer) -> None:
        """Give the answer the reason for which the cluster is not ready, now and at changes."""

        def changed(_: "ClusterStatus") -> None:
            answer.cluster_changed()

        self._unsubscribe[answer] = self._cluster.subscribe(changed)
        answer.watch(lambda: waiting_reason(self._cluster.status()))

    def _forget(self, client: str, answer: Answer) -> None:
        self._answers.discard(answer)
        self._places.give_back(client)
        unsubscribe = self._unsubscribe.pop(answer, None)
        if unsubscribe is not None:
            unsubscribe()

    async def generate(
        self, request: Generation, *, deadline: float | None = None
    ) -> AsyncGenerator[Delta | Waiting | Done, None]:
        """Submit and iterate: deltas, waits, then Done. Closing the iterator ends the request."""
        with await self.submit(request, deadline=deadline) as answer:
            async for event in answer:
                yield event

    async def prompt_ids(self, given: Input, deadline: float | None = None) -> tuple[int, ...]:
        """Token ids of an input, for several requests of the same. Raises HearthError."""
        if self._shutting_down:
            raise errors.shutting_down()
        return await self._input_ids(given, deadline)

    def check(self, request: Generation, ids: tuple[int, ...]) -> None:
        """Raise HearthError for what `submit` would refuse of a prompt with these ids."""
        self._engine.check(request.params(ids))

    async def expected(self, given: Input, ids: Sequence[int]) -> "Expected | None":
        """The form of the answers to an input whose prompt has these ids; None: plain text.

        Raises HearthError.
        """
        from hearth.root.api.tools.expected import expected_of

        if not isinstance(given, Conversation):
            return None
        tokenizer = self._engine.tokenizer
        return await self._in_thread(self._renderers, expected_of, tokenizer, given.tools, ids)

    async def constrained(
        self, sampling: Sampling, tools: "Tools", expected: "Expected | None"
    ) -> Sampling:
        """The sampling with the constraint that tools need. Raises HearthError."""
        if expected is None:
            return sampling
        from hearth.root.api.tools.choice import constrained

        # Grammars of 512 tools take a while.
        return await self._in_thread(self._renderers, constrained, sampling, tools, expected)

    async def reasons(self) -> bool:
        """True if the model reasons before it answers."""
        from hearth.root.api.tools.discovery import facts_of

        tokenizer = self._engine.tokenizer
        facts = await self._in_thread(self._renderers, facts_of, tokenizer, False)
        return facts.form.reasoning is not None or facts.form.channels

    async def render(self, given: Conversation) -> str:
        """The prompt that the model's chat template makes of a conversation. Raises HearthError."""
        engine = self._engine
        size = engine.limits.context_size
        return await self._in_thread(
            self._renderers, conversation_text, engine.tokenizer, given, size
        )

    async def fills_gaps(self) -> bool:
        """True for a model that takes an `Infill`."""
        found = await self._in_thread(self._tokenizers, gap_tokens, self._engine.tokenizer)
        return found is not None

    async def embed(
        self,
        inputs: Sequence[Input],
        pooling: str = "",
        *,
        truncate: bool = False,
        deadline: float | None = None,
    ) -> list[Vector]:
        """The vectors of texts, each pooled over its final hidden states, not normalised.

        pooling: "mean", "cls" or "last"; "" for the root's or else the model's, which is "last"
        where its files name none. truncate: cut texts that are too long. Raises HearthError as
        `submit` does, INVALID_ARGUMENT for a model whose vectors Hearth cannot compute.
        """
        own = self._model.pooling
        kind = pooling or self._pooling or own.kind or "last"
        if own.problem and not (pooling or self._pooling):
            raise invalid(
                f"this model's embeddings need more than Hearth computes: {own.problem}; --pooling "
                "gives others"
            )
        if len(inputs) > MAX_INPUTS:
            raise invalid(f"{len(inputs)} texts were given; at most {MAX_INPUTS} are allowed")
        work = [functools.partial(self._vector, each, kind, truncate, deadline) for each in inputs]
        return await in_turn(work)

    async def _vector(
        self, given: Input, pooling: str, truncate: bool, deadline: float | None
    ) -> Vector:
        ids = await self._input_ids(given, deadline)
        room = self.room(0) - 1
        if truncate and len(ids) > room:
            end = self._engine.tokenizer.suffix
            ids = (*ids[: room - len(end)], *end)
        request = Generation(TokenIds(ids), max_tokens=1, pooling=pooling)
        with await self.submit(request, deadline=deadline) as answer:
            async for event in answer:
                if isinstance(event, Done) and event.vector is not None:
                    return Vector(event.vector, len(ids))
        raise errors.internal(RuntimeError("a request for a vector ended without one"))

    def room(self, prompt_tokens: int) -> int:
        """Tokens that an answer to such a prompt may have in this cluster."""
        limits = self._engine.limits
        return min(limits.context_size, limits.max_pages * limits.page_size + 1) - prompt_tokens

    async def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Token ids of a text. add_special: with the tokens that open a sequence."""
        size = len(check_text("text", text).encode())
        check_size("text", size, self._engine.limits.context_size)
        return await self._in_thread(
            self._tokenizers, self._engine.tokenizer.encode, text, add_special
        )

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        check_count(len(ids), self._engine.limits.context_size)
        return await self._in_thread(self._tokenizers, self._decode, ids)

    def model(self) -> ModelFacts:
        """The facts of the running model."""
        spec = self._model.spec
        return ModelFacts(
            name=spec.name,
            architecture=spec.architecture,
            parameters=spec.parameters,
            layers=spec.layers,
            hidden_size=spec.hidden_size,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            vocab_size=spec.vocab_size,
            context_size=self._engine.limits.context_size,
            weight_type=self._model.weight_type,
            has_chat_template=self._engine.tokenizer.chat_template is not None,
            sampling_defaults=self._model.sampling_defaults,
            pooling=self._model.pooling.kind,
            aliases=self._model.aliases,
        )

    def cluster(self) -> "ClusterStatus":
        """The cluster now."""
        return self._cluster.status()

    def subscribe(self, callback: Callable[["ClusterStatus"], object]) -> Callable[[], object]:
        """Call back at every change of the cluster, from any thread; the result ends it."""
        return self._cluster.subscribe(callback)

    async def watch(self) -> AsyncGenerator["ClusterStatus", None]:
        """The cluster now, then after each change, until HearthError SHUTTING_DOWN.

        Changes that come faster than they are read are skipped, the last one never.
        """
        client = CLIENT.get()
        self._admit(client)
        changed = Signal()
        self._watchers.add(changed)
        unsubscribe = self._cluster.subscribe(changed.set)
        try:
            last: ClusterStatus | None = None
            while not self._shutting_down:
                status = self._cluster.status()
                if status != last:
                    yield status
                    last = status
                await changed.wait()
            raise errors.shutting_down()
        finally:
            unsubscribe()
            self._watchers.remove(changed)
            self._places.give_back(client)

    async def drain_worker(self, worker: str, undo: bool = False) -> "ClusterStatus":
        """Take a worker out, or let it in again; returns when the cluster serves so.

        Raises HearthError where that cannot be, or what the worker answers (see Supervisor.drain).
        """
        if self._drain is None:
            raise HearthError(Reason.CLUSTER_NOT_READY, "this root has no workers to take out")
        return await asyncio.wrap_future(self._drain(worker, undo))

    async def shutdown(self, grace: float) -> None:
        """Refuse new streams and end the open ones: answers may finish for `grace` seconds."""
        self._shutting_down = True
        for changed in self._watchers:
            changed.set()
        deadline = asyncio.get_running_loop().time() + grace
        while self._answers and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_SHUTDOWN_POLL_SECONDS)
        for answer in self._answers:
            answer.fail(errors.shutting_down())

    def close(self) -> None:
        """Let the threads end."""
        for threads in self._threads.turns:
            threads.shutdown(wait=False, cancel_futures=True)

    def _admit(self, client: str) -> None:
        """Take a place for one more stream. Raises HearthError where that is not allowed."""
        if self._shutting_down:
            raise errors.shutting_down()
        self._places.take(client)

    async def _input_ids(self, given: Input, deadline: float | None) -> tuple[int, ...]:
        context_size = self._engine.limits.context_size
        if isinstance(given, TokenIds) and isinstance(given.ids, tuple):
            return input_ids(self._engine.tokenizer, given, context_size)  # nothing to compute
        threads = self._renderers if isinstance(given, Conversation) else self._tokenizers
        try:
            async with asyncio.timeout_at(deadline):
                return await self._in_thread(
                    threads, input_ids, self._engine.tokenizer, given, context_size
                )
        except TimeoutError:
            raise past_deadline("it was not queued yet") from None

    async def _matcher(self, constraint: Constraint | None) -> Matcher | None:
        """The compiled constraint of a request. Raises HearthError INVALID_ARGUMENT."""
        if constraint is None:
            return None
        try:
            async with asyncio.timeout(_COMPILE_SECONDS):
                return await self._in_thread(self._compilers, self._engine.matcher, constraint)
        except TimeoutError:
            problem = f"it was not compiled within {_COMPILE_SECONDS:g} s; use a smaller one"
            raise constraint.refused(problem) from None

    def _decode(self, ids: Sequence[int]) -> str:
        check_ids(ids, self._model.spec.vocab_size)
        return self._engine.tokenizer.decode(ids)

    async def _in_thread(
        self, threads: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work` in one of the threads: a long prompt takes a while, and memory."""
        loop = asyncio.get_running_loop()
        call = functools.partial(work, *args, **kwargs)
        try:
            async with self._threads.turns[threads].turn(CLIENT.get()):
                return await loop.run_in_executor(threads, call)
        except ModelError as error:
            raise HearthError(Reason.INVALID_ARGUMENT, str(error)) from error
