"""The synchronous client."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from hearth.client.connection import channel_options, credentials_of, metadata_of
from hearth.client.errors import from_rpc_error
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


class GenerateStream:
    """Text as it is made: iterate over it; also a context manager that cancels when left early.

    `cancel` may be called from any thread. What the iteration raises is a HearthError.
    """

    def __init__(self, call: Any, address: str) -> None:
        self._call = call
        self._address = address
        self._progress = Progress()

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
        self._call.cancel()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            for response in self._call:
                text = self._progress.add(response)
                if text:
                    return text
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._address) from error
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


class Client:
    """A connection to the root at `address` ("host:port"). Thread-safe.

    Nothing is dialled before the first call. When nothing listens, a call raises Unreachable: at
    once where the machine refuses, else after `connect_timeout` seconds. `timeout` is the default
    for every call but generate and watch_cluster, which may take as long as they like.

    tls: a directory with `ca.crt`, and `tls.crt` and `tls.key` where the root wants a certificate
    (`hearth certs init` makes one, DIR/client); None speaks plaintext. api_key: one that the root
    knows. credentials: gRPC's own, in place of `tls`.
    """

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
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self._stub = root_pb2_grpc.RootServiceStub(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Mapping[str, str]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateStream:
        """Streams text after a prompt, token ids, or a conversation of {"role", "content"}."""
        request = generate_request(prompt, tokens, messages, options)
        call = self._stub.Generate(request, timeout=options.get("timeout"), metadata=self._metadata)
        return GenerateStream(call, self.address)

    def generate_text(
        self,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Mapping[str, str]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """Like `generate`, all at once."""
        with self.generate(prompt, tokens=tokens, messages=messages, **options) as stream:
            return "".join(stream)

    def tokenize(
        self, text: str, *, add_special: bool = True, timeout: float | None = None
    ) -> list[int]:
        """Token ids; with `add_special` begin-of-sequence first where the model has that rule."""
        request = tokenize_request(text, add_special)
        return list(self._call(self._stub.Tokenize, request, timeout).ids)

    def detokenize(self, ids: Iterable[int], *, timeout: float | None = None) -> str:
        request = detokenize_request(ids)
        return self._call(self._stub.Detokenize, request, timeout).text

    def model(self, *, timeout: float | None = None) -> root_pb2.GetModelResponse:
        """The model that the root serves, in numbers."""
        return self._call(self._stub.GetModel, root_pb2.GetModelRequest(), timeout)

    def cluster(self, *, timeout: float | None = None) -> root_pb2.ClusterStatus:
        """The cluster now."""
        request = root_pb2.GetClusterRequest()
        return self._call(self._stub.GetCluster, request, timeout).cluster

    def drain_worker(
        self, worker: str, *, undo: bool = False, timeout: float | None = None
    ) -> root_pb2.ClusterStatus:
        """Takes a worker out on purpose, by address or name; with `undo` lets it in again.

        Returns the cluster when it serves so. Running requests pause meanwhile, and none fails.
        """
        request = root_pb2.DrainWorkerRequest(worker=worker, undo=undo)
        return self._call(self._stub.DrainWorker, request, timeout).cluster

    def watch_cluster(self, *, timeout: float | None = None) -> Iterator[root_pb2.ClusterStatus]:
        """The cluster now, then again at every change, until the iterator is closed."""
        call = self._stub.WatchCluster(
            root_pb2.WatchClusterRequest(), timeout=timeout, metadata=self._metadata
        )
        try:
            for response in call:
                yield response.cluster
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Ends the connection, and with it every call that is open."""
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
        limit = self._timeout if timeout is None else timeout
        try:
            return method(request, timeout=limit, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from error
