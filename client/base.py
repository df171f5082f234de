"""Settings, requests and progress, shared by the synchronous and the asyncio client."""

import secrets
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Unpack

import grpc

from hearth.client.connection import (
    Options,
    Reconnecting,
    channel_options,
    check_exposed,
    credentials_of,
    metadata_of,
)
from hearth.client.messages import (
    FinishReason,
    GenerateOptions,
    Message,
    Progress,
    ToolCall,
    Usage,
    generate_request,
)
from hearth.v1 import root_pb2, root_pb2_grpc

# Metadata of Generate: the request's name in the root's log.
_REQUEST_ID = "hearth-request-id"
_HOOKS: tuple[Literal["on_waiting", "on_reasoning"], ...] = ("on_waiting", "on_reasoning")


class BaseStream:
    """One call of Generate: its progress, and how to cancel it."""

    def __init__(
        self, start: Callable[[], Any], address: str, progress: Progress, request_id: str
    ) -> None:
        """start: makes gRPC's call, a stream of GenerateResponse; address: the root's."""
        # The request's name in the root's log.
        self.request_id = request_id
        self._start = start
        self._call = start()
        self._cancelled = False
        self._reconnecting = Reconnecting()
        self._address = address
        self._progress = progress

    @property
    def token_ids(self) -> list[int]:
        """Tokens received so far, including the end-of-sequence token."""
        return self._progress.token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Reason for the end; None until the iteration has ended."""
        return self._progress.finish_reason

    @property
    def usage(self) -> Usage | None:
        """Tokens and seconds used; None until the iteration has ended."""
        return self._progress.usage

    @property
    def reasoning(self) -> str:
        """Reasoning received so far, where it was asked for apart from the text."""
        return "".join(self._progress.reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Calls of tools received so far, each of them whole."""
        return self._progress.tool_calls

    @property
    def message(self) -> dict[str, Any]:
        """The answer so far as a message, to continue the conversation with."""
        made: dict[str, Any] = {"role": "assistant", "content": "".join(self._progress.texts)}
        if self.reasoning:
            made["reasoning"] = self.reasoning
        if self.tool_calls:
            made["tool_calls"] = list(self.tool_calls)
        return made

    def cancel(self) -> None:
        """Stop the work on the cluster within one step; the iteration raises Cancelled."""
        self._cancelled = True
        self._call.cancel()

    def _start_again(self) -> None:
        """Makes the call again, unless the stream was cancelled meanwhile."""
        call = self._start()
        self._call = call
        if self._cancelled:
            call.cancel()


Stream = TypeVar("Stream", bound=BaseStream)


class BaseClient(Generic[Stream]):
    """A connection to the root at `address` ("host:port").

    Nothing is dialled before the first call. When nothing listens, a call raises Unreachable: at
    once where the machine refuses, else after `connect_timeout` seconds. `timeout` is the default
    of every call except generate and watch_cluster, which have no limit of their own.

    tls: a directory with `ca.crt`, and `tls.crt` and `tls.key` where the root requires a
    certificate (`hearth certs init` makes one, DIR/client); None uses plaintext. api_key: a key
    that the root accepts; it is sent in plaintext to this machine only, unless `insecure`.
    credentials: gRPC's own, instead of `tls`.
    """

    _stream_type: type[Stream]

    def __init__(
        self,
        address: str,
        *,
        connect_timeout: float = 5.0,
        timeout: float = 30.0,
        tls: str | Path | None = None,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        insecure: bool = False,
    ) -> None:
        """Raises InvalidArgument for files or a key that cannot be used; Insecure."""
        if api_key is not None and tls is None and credentials is None and not insecure:
            check_exposed(address)
        self.address = address
        self._timeout = timeout
        self._metadata = metadata_of(api_key)
        credentials, more = credentials_of(tls, credentials)
        self._channel = self._open(address, credentials, channel_options(connect_timeout) + more)
        self._stub: Any = root_pb2_grpc.RootServiceStub(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        tokens: Iterable[int] | None = None,
        messages: Iterable[Message] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """Stream text after a prompt, token ids, or a conversation of {"role", "content"}.

        Raises InvalidArgument or TypeError.
        """
        request = generate_request(prompt, tokens, messages, options)
        limit = options.get("timeout")
        hooks = {name: options[name] for name in _HOOKS if name in options}
        request_id = options.get("request_id") or secrets.token_hex(6)
        metadata = (*(self._metadata or ()), (_REQUEST_ID, request_id))
        start = partial(self._stub.Generate, request, timeout=limit, metadata=metadata)
        return self._stream_type(start, self.address, Progress(**hooks), request_id)

    def chat(self, messages: Iterable[Message], **options: Unpack[GenerateOptions]) -> Stream:
        """Stream the answer to a conversation, without its reasoning; see `generate`.

        The stream's `tool_calls`, `reasoning` and `message` are complete when its iteration ends.
        """
        options.setdefault("separate_reasoning", True)
        return self.generate(messages=messages, **options)

    def _open(
        self, address: str, credentials: grpc.ChannelCredentials | None, options: Options
    ) -> Any:
        """A channel of the client's kind."""
        raise NotImplementedError

    def _limit(self, timeout: float | None) -> float:
        """Seconds that a call may take."""
        return self._timeout if timeout is None else timeout

    def _embed(self, request: root_pb2.EmbedRequest, timeout: float | None) -> Any:
        """A started call of Embed."""
        return self._stub.Embed(request, timeout=timeout, metadata=self._metadata)

    def _watch(self, timeout: float | None) -> Any:
        """A started call of WatchCluster."""
        request = root_pb2.WatchClusterRequest()
        return self._stub.WatchCluster(request, timeout=timeout, metadata=self._metadata)
