"""The synchronous client."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from hearth.client.base import BaseClient, BaseStream
from hearth.client.connection import Options, Reconnecting
from hearth.client.errors import from_rpc_error
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


class GenerateStream(BaseStream):
    """Generated text, piece by piece: an iterator, and a context manager that cancels on exit.

    `cancel` may be called from any thread. The iteration raises HearthError.
    """

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            try:
                for response in self._call:
                    text = self._progress.add(response)
                    if text:
                        return text
                break
            except grpc.RpcError as error:
                pause = self._reconnecting.pause(error)
                if pause is None:
                    raise from_rpc_error(error, self._address) from error
            time.sleep(pause)
            self._start_again()
        self._progress.check_ended(self._address)
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class Client(BaseClient[GenerateStream]):
    """A connection to a root. Thread-safe. See BaseClient for the arguments."""

    _stub: root_pb2_grpc.RootServiceStub
    _stream_type = GenerateStream

    def _open(
        self, address: str, credentials: grpc.ChannelCredentials | None, options: Options
    ) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    def generate_text(
        self,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """Return the whole text of `generate`."""
        with self.generate(prompt, tokens=tokens, messages=messages, **options) as stream:
            return "".join(stream)

    def generate_samples(
        self,
        samples: int,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[str]:
        """Return several texts of one prompt, made together; the root prefills it once.

        With a seed, each text has one of its own, from `seed` on. Raises ValueError for fewer than
        one or more than 64.
        """
        given = None if messages is None else list(messages)
        ids = None if tokens is None else list(tokens)
        streams = [
            self.generate(prompt, tokens=ids, messages=given, **each)
            for each in sample_options(samples, options)
        ]
        with ThreadPoolExecutor(samples, "sample") as pool:
            try:
                return list(pool.map("".join, streams))
            finally:
                for stream in streams:
                    stream.cancel()

    def embed(
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
                return [list(response.values) for response in call]
            except grpc.RpcError as error:
                pause = reconnecting.pause(error)
                if pause is None:
                    raise from_rpc_error(error, self.address) from error
            finally:
                call.cancel()
            time.sleep(pause)

    def tokenize(
        self, text: str, *, add_special: bool = True, timeout: float | None = None
    ) -> list[int]:
        """Token ids of `text`.

        add_special: put the begin-of-sequence token first where the model has that rule.
        """
        request = tokenize_request(text, add_special)
        return list(self._call(self._stub.Tokenize, request, timeout).ids)

    def detokenize(self, ids: Iterable[int], *, timeout: float | None = None) -> str:
        """Text of `ids`."""
        request = detokenize_request(ids)
        return self._call(self._stub.Detokenize, request, timeout).text

    def model(self, name: str = "", *, timeout: float | None = None) -> root_pb2.GetModelResponse:
        """The shape of the model that the root serves. name: of one of several."""
        request = root_pb2.GetModelRequest(model=name)
        return self._call(self._stub.GetModel, request, timeout)

    def models(self, *, timeout: float | None = None) -> list[root_pb2.ListedModel]:
        """The models that the root serves."""
        request = root_pb2.ListModelsRequest()
        return list((self._call(self._stub.ListModels, request, timeout)).models)

    def cluster(self, *, timeout: float | None = None) -> root_pb2.ClusterStatus:
        """The cluster's state now."""
        request = root_pb2.GetClusterRequest()
        return self._call(self._stub.GetCluster, request, timeout).cluster

    def drain_worker(
        self, worker: str, *, undo: bool = False, timeout: float | None = None
    ) -> root_pb2.ClusterStatus:
        """Take a worker out of the cluster, by address or name; with `undo` let it in again.

        Returns the cluster when it is ready without the worker; with `undo`, when the worker is in,
        or ready where it is not needed. Running requests pause; none fails. Raises HearthError
        where the rest have no room, or the worker to let in cannot be used.
        """
        request = root_pb2.DrainWorkerRequest(worker=worker, undo=undo)
        return self._call(self._stub.DrainWorker, request, timeout).cluster

    def watch_cluster(self, *, timeout: float | None = None) -> Iterator[root_pb2.ClusterStatus]:
        """The cluster now, then at every change, until the iterator is closed."""
        call = self._watch(timeout)
        try:
            for response in call:
                yield response.cluster
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the connection, and with it every open call."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self, method: "grpc.UnaryUnaryMultiCallable[Any, T]", request: Any, timeout: float | None
    ) -> T:
        limit = self._limit(timeout)
        reconnecting = Reconnecting()
        while True:
            try:
                return method(request, timeout=limit, metadata=self._metadata)
            except grpc.RpcError as error:
                pause = reconnecting.pause(error)
                if pause is None:
                    raise from_rpc_error(error, self.address) from error
            time.sleep(pause)
