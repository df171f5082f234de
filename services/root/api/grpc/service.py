"""The root's gRPC face: hearth.v1.RootService on grpc.aio, around an engine and a cluster.

Text in, text out; what runs when is the engine's business. Every handler ends in an answer or in a
HearthError, which travels as google.rpc.Status. A call that its client cancels, or whose deadline
passes, is cancelled here by gRPC, and the request's work with it.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError

from hearth.common.errors import HearthError, Reason
from hearth.common.rpc_errors import to_status
from hearth.common.types import WEIGHT
from hearth.converter.errors import ModelError
from hearth.converter.spec import ModelSpec
from hearth.root.api.prompt import check_count, check_size, conversation_ids, prompt_ids
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta, Done, Failed, Mailbox
from hearth.root.engine.params import GenerateParams, Sampling, check_ids
from hearth.v1 import root_pb2, root_pb2_grpc

SERVICE = root_pb2.DESCRIPTOR.services_by_name["RootService"].full_name

log = logging.getLogger(__name__)

# Streams (Generate and WatchCluster) open at once. Each costs a mailbox of at most one answer.
MAX_STREAMS = 256

# Texts tokenized at once; others wait for their turn.
_MOST_TOKENIZERS = 2

Context = Any  # grpc.aio.ServicerContext; the stubs' own type is a private one
Q = TypeVar("Q")
A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[[Any, Q, Context], Coroutine[Any, Any, A]]


class ServedModel(Protocol):
    """What the service tells of a model; hearth.converter.Model is one."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def weight_type(self) -> str: ...


class Cluster(Protocol):
    """What the service tells of the cluster; called from its event loop, so neither may block."""

    def status(self) -> root_pb2.ClusterStatus: ...

    def subscribe(
        self, callback: Callable[[root_pb2.ClusterStatus], object]
    ) -> Callable[[], object]:
        """Calls back (from any thread) at every change, until the function returned is called."""


Drain = Callable[[str, bool], "Future[root_pb2.ClusterStatus]"]


def _answers_errors(handler: Callable[[Any, Q, Context], Awaitable[A]]) -> Handler[Q, A]:
    """Turns a handler's HearthError (or anything unforeseen) into the status of its call."""

    @functools.wraps(handler)
    async def wrapped(self: Any, request: Q, context: Context) -> A:
        try:
            if isinstance(request, HearthError):
                raise request  # see Unreadable
            return await handler(self, request, context)
        except HearthError as error:
            failure = error
        except ModelError as error:
            failure = HearthError(Reason.INVALID_ARGUMENT, str(error))
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            failure = HearthError(
                Reason.INTERNAL,
                f"{handler.__name__} failed on the root: {type(error).__name__}; its log has the "
                "details",
            )
        status = to_status(failure)
        await context.abort(status.code, status.details, status.trailing_metadata)
        raise failure  # abort never returns

    return wrapped


class Unreadable(grpc.aio.ServerInterceptor):
    """Hands a message that is not what root.proto says (text that is not UTF-8) to its handler as a
    HearthError, so that the client gets INVALID_ARGUMENT; gRPC's own answer would be UNKNOWN."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(f"/{SERVICE}/"):
            return handler
        parse = handler.request_deserializer

        def parse_or_error(data: bytes) -> Any:
            try:
                return parse(data)
            except DecodeError as error:
                return HearthError(
                    Reason.INVALID_ARGUMENT,
                    f"the message of {len(data)} bytes cannot be read: {error}",
                    {"bytes": len(data)},
                )

        return handler._replace(request_deserializer=parse_or_error)


class RootService(root_pb2_grpc.RootServiceServicer):
    """See root.proto. Lives on one event loop."""

    def __init__(
        self,
        engine: Engine,
        model: ServedModel,
        cluster: Cluster,
        max_streams: int = MAX_STREAMS,
        drain: Drain | None = None,
    ) -> None:
        """drain: takes a worker out, by address or name, or (True) lets it in again."""
        self._drain = drain
        self._engine = engine
        self._model = model
        self._cluster = cluster
        self._max_streams = max_streams
        self._generating = 0
        self._draining = False
        self._tokenizers = ThreadPoolExecutor(_MOST_TOKENIZERS, "tokenizing")
        # Set by every change that an open WatchCluster must look at.
        self._watchers: set[asyncio.Event] = set()

    @_answers_errors
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: root_pb2.GenerateRequest, context: Context
    ) -> None:
        """Writes to the context itself, so that cancellation always ends it at once."""
        with self._stream():
            self._generating += 1
            try:
                await self._generate(request, context)
            finally:
                self._generating -= 1

    async def _generate(self, request: root_pb2.GenerateRequest, context: Context) -> None:
        params = await self._tokenizing(self._params, request)
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise HearthError(Reason.DEADLINE, "the deadline passed before the request was queued")
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ready.set)

        mailbox = Mailbox(wake)
        handle = self._engine.submit(params, mailbox)
        try:
            while True:
                await ready.wait()
                ready.clear()
                delta, end = mailbox.take()
                if delta is not None:
                    # Waits while the client is slow; what is made meanwhile is merged in the box.
                    await context.write(_delta(delta))
                if isinstance(end, Failed):
                    raise end.error
                if end is not None:
                    await context.write(_done(end))
                    return
        finally:
            handle.cancel()

    @_answers_errors
    async def Tokenize(  # noqa: N802
        self, request: root_pb2.TokenizeRequest, context: Context
    ) -> root_pb2.TokenizeResponse:
        check_size("text", len(request.text.encode()), self._engine.limits.context_size)
        tokenizer = self._engine.tokenizer
        ids = await self._tokenizing(tokenizer.encode, request.text, request.add_special)
        return root_pb2.TokenizeResponse(ids=ids)

    @_answers_errors
    async def Detokenize(  # noqa: N802
        self, request: root_pb2.DetokenizeRequest, context: Context
    ) -> root_pb2.DetokenizeResponse:
        return await self._tokenizing(self._detokenize, request)

    @_answers_errors
    async def GetModel(  # noqa: N802
        self, request: root_pb2.GetModelRequest, context: Context
    ) -> root_pb2.GetModelResponse:
        spec = self._model.spec
        return root_pb2.GetModelResponse(
            name=spec.name,
            architecture=spec.architecture,
            parameters=spec.parameters,
            layers=spec.layers,
            hidden_size=spec.hidden_size,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            vocab_size=spec.vocab_size,
            context_size=self._engine.limits.context_size,
            weight_type=WEIGHT[self._model.weight_type],
            has_chat_template=self._engine.tokenizer.chat_template is not None,
        )

    @_answers_errors
    async def GetCluster(  # noqa: N802
        self, request: root_pb2.GetClusterRequest, context: Context
    ) -> root_pb2.GetClusterResponse:
        return root_pb2.GetClusterResponse(cluster=self._cluster.status())

    @_answers_errors
    async def WatchCluster(  # type: ignore[override]  # noqa: N802
        self, request: root_pb2.WatchClusterRequest, context: Context
    ) -> None:
        """Changes that come faster than the client reads are skipped, the last one never."""
        with self._stream(), self._changes() as changed:
            told: root_pb2.ClusterStatus | None = None
            while not self._draining:
                status = self._cluster.status()
                if status != told:
                    await context.write(root_pb2.WatchClusterResponse(cluster=status))
                    told = status
                await changed.wait()
                changed.clear()
            raise _shutting_down()

    @_answers_errors
    async def DrainWorker(  # noqa: N802
        self, request: root_pb2.DrainWorkerRequest, context: Context
    ) -> root_pb2.DrainWorkerResponse:
        if self._drain is None:
            raise HearthError(Reason.CLUSTER_NOT_READY, "this root has no workers to take out")
        status = await asyncio.wrap_future(self._drain(request.worker, request.undo))
        return root_pb2.DrainWorkerResponse(cluster=status)

    async def drain(self, grace: float) -> None:
        """Takes no new streams; returns when running ones have ended, or after `grace` seconds."""
        self._draining = True
        for changed in self._watchers:
            changed.set()
        deadline = asyncio.get_running_loop().time() + grace
        while self._generating and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    async def _tokenizing(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does `work` in a thread, a few at a time: a long prompt takes a while, and memory."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._tokenizers, functools.partial(work, *args, **kwargs)
        )

    def close(self) -> None:
        """Lets its threads go."""
        self._tokenizers.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """A place among the open streams, or HearthError."""
        if self._draining:
            raise _shutting_down()
        if self._generating + len(self._watchers) >= self._max_streams:
            raise HearthError(
                Reason.QUEUE_FULL,
                f"{self._max_streams} streams are open, and the root takes no more; try again "
                "later",
                {"maxStreams": self._max_streams},
            )
        yield

    @contextmanager
    def _changes(self) -> Iterator[asyncio.Event]:
        """An event that is set when the cluster changes, or the service drains."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake(_: root_pb2.ClusterStatus) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        self._watchers.add(changed)
        unsubscribe = self._cluster.subscribe(wake)
        try:
            yield changed
        finally:
            unsubscribe()
            self._watchers.remove(changed)

    def _params(self, request: root_pb2.GenerateRequest) -> GenerateParams:
        sampling = request.sampling
        given = sampling.HasField
        # Sampling first: it costs nothing to check.
        checked = Sampling(
            sampling.temperature,
            sampling.top_k,
            sampling.top_p if given("top_p") else 1.0,
            sampling.min_p,
            sampling.repetition_penalty if given("repetition_penalty") else 1.0,
            sampling.seed if given("seed") else None,
        )
        params = GenerateParams(
            (), request.max_tokens, checked, tuple(request.stop), request.ignore_eos
        )
        return params.with_prompt(self._prompt(request))

    def _prompt(self, request: root_pb2.GenerateRequest) -> tuple[int, ...]:
        tokenizer = self._engine.tokenizer
        context = self._engine.limits.context_size
        match request.WhichOneof("input"):
            case "tokens":
                check_count(len(request.tokens.ids), context)
                return tuple(request.tokens.ids)
            case "conversation":
                messages = request.conversation.messages
                check_size("conversation", request.conversation.ByteSize(), context)
                return conversation_ids(
                    tokenizer, [{"role": m.role, "content": m.content} for m in messages]
                )
            case "prompt":
                check_size("prompt", len(request.prompt.encode()), context)
                return prompt_ids(tokenizer, request.prompt)
        raise HearthError(
            Reason.INVALID_ARGUMENT,
            "the request has no input; give a prompt (it may be empty), tokens, or a conversation",
        )

    def _detokenize(self, request: root_pb2.DetokenizeRequest) -> root_pb2.DetokenizeResponse:
        check_count(len(request.ids), self._engine.limits.context_size)
        check_ids(request.ids, self._model.spec.vocab_size)
        return root_pb2.DetokenizeResponse(text=self._engine.tokenizer.decode(request.ids))


def _delta(delta: Delta) -> root_pb2.GenerateResponse:
    return root_pb2.GenerateResponse(
        delta=root_pb2.GenerateDelta(text=delta.text, token_ids=delta.token_ids)
    )


def _done(done: Done) -> root_pb2.GenerateResponse:
    usage = done.usage
    return root_pb2.GenerateResponse(
        done=root_pb2.GenerateDone(
            finish_reason=root_pb2.FinishReason.ValueType(int(done.finish_reason)),
            usage=root_pb2.Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                queue_seconds=usage.queue_seconds,
                prefill_seconds=usage.prefill_seconds,
                decode_seconds=usage.decode_seconds,
            ),
        )
    )


def _shutting_down() -> HearthError:
    return HearthError(
        Reason.SHUTTING_DOWN,
        "the root is shutting down and takes no new requests; connect again when it is back",
    )
