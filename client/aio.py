"""The asyncio client: `Client` word for word, with `async` before it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from hearth.client.connection import channel_options, credentials_of, metadata_of
from hearth.client.errors import cancelled, from_rpc_error
from hearth.client.messages import (
    FinishReason,
    GenerateOptions,
    Progress,
    Usage,
    detokenize_request,
    generate_request,
    tokenize_request,
)
from hearth.v1 import root_pb2, root_pb2_grpc

T = TypeVar("T")


class AsyncGenerateStream:
    """Text as it is made: `async for` over it; `async with` cancels when left early.

    Cancelling the task that reads it stops the work too.
    """

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address
        self._progress = Progress()
        self._cancelled = False

    @property
    def token_ids(self) -> list[int]:
        """Tokens that have arrived, the end-of-sequence token included."""
        return self._progress.token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """None until the iteration has ended."""
        return self._progress.finish_reason

    @property
    def usage(self) -> Usage | None:
        """None until the iteration has ended."""
        return self._progress.usage

    def cancel(self) -> None:
        """Stops the work on the cluster within one step; the iteration raises Cancelled."""
        self._cancelled = True
        self._call.cancel()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                text = self._progress.add(response)
                if text:
                    return text
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._address) from error
        except asyncio.CancelledError:
            # gRPC raises it for a call that was cancelled here, too: the task goes on.
            if self._cancelled:
                raise cancelled() from None
            raise
        self._progress.check_ended(self._address)
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class AsyncClient:
    """A connection to the root at `address` ("host:port"), for one event loop. See `Client`."""

    def __init__(
        self,
        address: str,
        *,
        connect_timeout: float = 5.0,
        timeout: float = 30.0,
        tls: str | Path | None = None,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._metadata = metadata_of(api_key)
        credentials, more = credentials_of(tls, credentials)
        options = channel_options(connect_timeout) + more
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._stub = root_pb2_grpc.RootServiceStub(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Mapping[str, str]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerateStream:
        """Streams text after a prompt, token ids, or a conversation of {"role", "content"}."""
        request = generate_request(prompt, tokens, messages, options)
        call = self._stub.Generate(request, timeout=options.get("timeout"), metadata=self._metadata)
        return AsyncGenerateStream(call, self.address)

    async def generate_text(
        self,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Mapping[str, str]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """Like `generate`, all at once."""
        stream = self.generate(prompt, tokens=tokens, messages=messages, **options)
        async with stream:
            return "".join([text async for text in stream])

    async def tokenize(
        self, text: str, *, add_special: bool = True, timeout: float | None = None
    ) -> list[int]:
        """Token ids; with `add_special` begin-of-sequence first where the model has that rule."""
        request = tokenize_request(text, add_special)
        return list((await self._call(self._stub.Tokenize, request, timeout)).ids)

    async def detokenize(self, ids: Iterable[int], *, timeout: float | None = None) -> str:
        request = detokenize_request(ids)
        return (await self._call(self._stub.Detokenize, request, timeout)).text

    async def model(self, *, timeout: float | None = None) -> root_pb2.GetModelResponse:
        """The model that the root serves, in numbers."""
        return await self._call(self._stub.GetModel, root_pb2.GetModelRequest(), timeout)

    async def cluster(self, *, timeout: float | None = None) -> root_pb2.ClusterStatus:
        """The cluster now."""
        request = root_pb2.GetClusterRequest()
        return (await self._call(self._stub.GetCluster, request, timeout)).cluster

    async def drain_worker(
        self, worker: str, *, undo: bool = False, timeout: float | None = None
    ) -> root_pb2.ClusterStatus:
        """Takes a worker out on purpose, by address or name; with `undo` lets it in again.

        Returns the cluster when it serves so. Running requests pause meanwhile, and none fails.
        """
        request = root_pb2.DrainWorkerRequest(worker=worker, undo=undo)
        return (await self._call(self._stub.DrainWorker, request, timeout)).cluster

    async def watch_cluster(
        self, *, timeout: float | None = None
    ) -> AsyncIterator[root_pb2.ClusterStatus]:
        """The cluster now, then again at every change, until the iterator is closed."""
        call = self._stub.WatchCluster(
            root_pb2.WatchClusterRequest(), timeout=timeout, metadata=self._metadata
        )
        try:
            async for response in call:
                yield response.cluster
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Ends the connection, and with it every call that is open."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Any, T]",
        request: Any,
        timeout: float | None,
    ) -> T:
        limit = self._timeout if timeout is None else timeout
        try:
            return await method(request, timeout=limit, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
