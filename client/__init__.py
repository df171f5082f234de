"""The client SDK of Hearth: `Client` and `AsyncClient` talk to a root over gRPC.

    from hearth.client import Client

    with Client("127.0.0.1:7716") as client:
        for text in client.generate("Once upon a time", max_tokens=100):
            print(text, end="", flush=True)

Depends on grpc, protobuf and the generated stubs (hearth.v1), and on no other part of Hearth.
"""

from hearth.client.aio import AsyncClient, AsyncGenerateStream
from hearth.client.client import Client, GenerateStream
from hearth.client.errors import (
    Cancelled,
    ClusterUnavailable,
    DeadlineExceeded,
    HearthError,
    Insecure,
    InvalidArgument,
    NoChatTemplate,
    PermissionDenied,
    QueueFull,
    ShuttingDown,
    Unauthenticated,
    Unreachable,
    WorkerLost,
)
from hearth.client.messages import FinishReason, ToolCall, Usage

__all__ = [
    "AsyncClient",
    "AsyncGenerateStream",
    "Cancelled",
    "Client",
    "ClusterUnavailable",
    "DeadlineExceeded",
    "FinishReason",
    "GenerateStream",
    "HearthError",
    "Insecure",
    "InvalidArgument",
    "NoChatTemplate",
    "PermissionDenied",
    "QueueFull",
    "ShuttingDown",
    "ToolCall",
    "Unauthenticated",
    "Unreachable",
    "Usage",
    "WorkerLost",
]
