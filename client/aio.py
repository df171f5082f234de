"""The asyncio client: the methods of `Client`, as coroutines."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from hearth.client.base import BaseClient, BaseStream
from hearth.client.connection import Options, Reconnecting
from hearth.client.errors import cancelled, from_rpc_error
from hearth.client.messages import (
    GenerateOptions,
    Message,
    detokenize_request,
    embed_request,
    sample_options,
    tokenize_request,
)
from hearth.v1 import root_pb2, root_pb2_grpc

T = TypeVar("T")


class AsyncGenerateStream(BaseStream):
    """Generated text, piece by piece: for `async for`; `async with` cancels on exit.

    Cancelling the task that reads it stops the work too.
    """

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            try:
                while (response := await self._call.read()) is not grpc.aio.EOF:
                    text = self._progress.add(response)
                    if text:
                        return text
                break
            except grpc.RpcError as error:
                pause = self._reconnecting.pause(error)
                if pause is None:
                    raise from_rpc_error(error, self._address) from error
            except asyncio.CancelledError:
                # gRPC raises it for a cancelled call too; then the task itself continues.
                if self._cancelled:
                    raise cancelled() from None
                raise
            await asyncio.sleep(pause)
            self._start_again()
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


class AsyncClient(BaseClient[AsyncGenerateStream]):
    """A connection to a root, for one event loop. See BaseClient for the arguments."""

    _stub: "root_pb2_grpc.RootServiceAsyncStub"
    _stream_type = AsyncGenerateStream

    def _open(
        self, address: str, credentials: grpc.ChannelCredentials | None, options: Options
    ) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials, options=options)

    async def generate_text(
        self,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """Return the whole text of `generate`."""
        stream = self.generate(prompt, tokens=tokens, messages=messages, **options)
        async with stream:
            return "".join([text async for text in stream])

    async def generate_samples(
        self,
        samples: int,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[str]:
        """See Client.generate_samples."""
        given = None if messages is None else list(messages)
        ids = None if tokens is None else list(tokens)
        each = [
            self.generate_text(prompt, tokens=ids, messages=given, **one)
            for one in sample_options(samples, options)
        ]
        return list(await asyncio.gather(*each))

    async def embed(
        self,
        texts: Iterable[str | Iterable[int]],
        *,
        pooling: str = "",
        truncate: bool = False,
        normalize: bool = True,
        model: str = "",
        timeout: float | None = None,
    ) -> list[list[float]]:
        """The vector of each text (or list of token ids), pooled over its final hidden states.

        pooling: "mean", "cls" or "last"; "" for the root's or the model's own. truncate: cut texts
        that are too long, instead of raising InvalidArgument. normalize: divide each by its
        Euclidean norm. model: the name of one of several. timeout: seconds for the whole call;
        None for no limit.
        """
        request = embed_request(texts, pooling, truncate, normalize, model)
        reconnecting = Reconnecting()
        while True:
            call = self._embed(request, timeout)
            try:
                return [list(response.values) async for response in call]
            except grpc.RpcError as error:
                pause = reconnecting.pause(error)
                if pause is None:
                    raise from_rpc_error(error, self.address) from error
            finally:
                call.cancel()
            await asyncio.sleep(pause)

    async def tokenize(
        self, text: str, *, add_special: bool = True, timeout: float | None = None
    ) -> list[int]:
        """Token ids of `text`.

        add_special: put the begin-of-sequence token first where the model has that rule.
        """
        request = tokenize_request(text, add_special)
        return list((await self._call(self._stub.Tokenize, request, timeout)).ids)

    async def detokenize(self, ids: Iterable[int], *, timeout: float | None = None) -> str:
        """Text of `ids`."""
        request = detokenize_request(ids)
        return (await self._call(self._stub.Detokenize, request, timeout)).text

    async def model(
        self, name: str = "", *, timeout: float | None = None
    ) -> root_pb2.GetModelResponse:
        """The shape of the model that the root serves. name: of one of several."""
        request = root_pb2.GetModelRequest(model=name)
        return await self._call(self._stub.GetModel, request, timeout)

    async def models(self, *, timeout: float | None = None) -> list[root_pb2.ListedModel]:
        """The models that the root serves."""
        request = root_pb2.ListModelsRequest()
        return list((await self._call(self._stub.ListModels, request, timeout)).models)

    async def cluster(self, *, timeout: float | None = None) -> root_pb2.ClusterStatus:
        """The cluster's state now."""
        request = root_pb2.GetClusterRequest()
        return (await self._call(self._stub.GetCluster, request, timeout)).cluster

    async def drain_worker(
        self, worker: str, *, undo: bool = False, timeout: float | None = None
    ) -> root_pb2.ClusterStatus:
        """Take a worker out of the cluster, by address or name; with `undo` let it in again.

        Returns the cluster when it is ready without the worker; with `undo`, when the worker is in,
        or ready where it is not needed. Running requests pause; none fails. Raises HearthError
        where the rest have no room, or the worker to let in cannot be used.
        """
        request = root_pb2.DrainWorkerRequest(worker=worker, undo=undo)
        return (await self._call(self._stub.DrainWorker, request, timeout)).cluster

    async def watch_cluster(
        self, *, timeout: float | None = None
    ) -> AsyncIterator[root_pb2.ClusterStatus]:
        """The cluster now, then at every change, until the iterator is closed."""
        call = self._watch(timeout)
        try:
            async for response in call:
                yield response.cluster
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection, and with it every open call."""
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
        limit = self._limit(timeout)
        reconnecting = Reconnecting()
        while True:
            try:
                return await method(request, timeout=limit, metadata=self._metadata)
            except grpc.RpcError as error:
                pause = reconnecting.pause(error)
                if pause is None:
                    raise from_rpc_error(error, self.address) from error
            await asyncio.sleep(pause)
