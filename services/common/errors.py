"""The services' error type: a reason for programs, a message for people, and metadata.

Independent of transport: rpc_errors.py maps it to gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum, auto


class Code(Enum):
    """The class of an error, with the names of google.rpc.Code."""

    UNKNOWN = auto()
    ABORTED = auto()
    ALREADY_EXISTS = auto()
    CANCELLED = auto()
    DATA_LOSS = auto()
    DEADLINE_EXCEEDED = auto()
    FAILED_PRECONDITION = auto()
    INTERNAL = auto()
    INVALID_ARGUMENT = auto()
    NOT_FOUND = auto()
    OUT_OF_RANGE = auto()
    PERMISSION_DENIED = auto()
    RESOURCE_EXHAUSTED = auto()
    UNAUTHENTICATED = auto()
    UNAVAILABLE = auto()
    UNIMPLEMENTED = auto()


class Reason(StrEnum):
    """Every reason of an error. Names are part of the contract: add, never rename."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    NO_CHAT_TEMPLATE = "NO_CHAT_TEMPLATE"
    MODEL_ERROR = "MODEL_ERROR"
    QUEUE_FULL = "QUEUE_FULL"
    CLUSTER_NOT_READY = "CLUSTER_NOT_READY"
    WORKER_BUSY = "WORKER_BUSY"
    WORKER_LOST = "WORKER_LOST"
    PEER_LOST = "PEER_LOST"
    # A worker that exceeded a limit of time, violated the protocol, or whose numbers are wrong.
    WORKER_UNFIT = "WORKER_UNFIT"
    WORKER_UNREACHABLE = "WORKER_UNREACHABLE"
    UNREACHABLE = "UNREACHABLE"
    PROTOCOL_VERSION = "PROTOCOL_VERSION"
    STALE_EPOCH = "STALE_EPOCH"
    STREAM_IN_USE = "STREAM_IN_USE"
    NOT_LOADED = "NOT_LOADED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    BAD_CHUNK = "BAD_CHUNK"
    BAD_SHARD = "BAD_SHARD"
    BAD_STEP = "BAD_STEP"
    PORT_IN_USE = "PORT_IN_USE"
    BAD_ADDRESS = "BAD_ADDRESS"
    BAD_SETTING = "BAD_SETTING"
    INSECURE = "INSECURE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"


# The code of each reason.
CODES: Mapping[str, Code] = {
    Reason.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: Code.INVALID_ARGUMENT,
    Reason.NO_CHAT_TEMPLATE: Code.FAILED_PRECONDITION,
    Reason.MODEL_ERROR: Code.FAILED_PRECONDITION,
    Reason.QUEUE_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.CLUSTER_NOT_READY: Code.UNAVAILABLE,
    Reason.WORKER_BUSY: Code.FAILED_PRECONDITION,
    Reason.WORKER_LOST: Code.UNAVAILABLE,
    Reason.PEER_LOST: Code.UNAVAILABLE,
    Reason.WORKER_UNFIT: Code.UNAVAILABLE,
    Reason.WORKER_UNREACHABLE: Code.UNAVAILABLE,
    Reason.UNREACHABLE: Code.UNAVAILABLE,
    Reason.PROTOCOL_VERSION: Code.FAILED_PRECONDITION,
    Reason.STALE_EPOCH: Code.FAILED_PRECONDITION,
    Reason.STREAM_IN_USE: Code.FAILED_PRECONDITION,
    Reason.NOT_LOADED: Code.FAILED_PRECONDITION,
    Reason.OUT_OF_MEMORY: Code.RESOURCE_EXHAUSTED,
    Reason.BAD_CHUNK: Code.DATA_LOSS,
    Reason.BAD_SHARD: Code.INVALID_ARGUMENT,
    Reason.BAD_STEP: Code.INVALID_ARGUMENT,
    Reason.PORT_IN_USE: Code.ALREADY_EXISTS,
    Reason.BAD_ADDRESS: Code.INVALID_ARGUMENT,
    Reason.BAD_SETTING: Code.INVALID_ARGUMENT,
    Reason.INSECURE: Code.FAILED_PRECONDITION,
    Reason.UNAUTHENTICATED: Code.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: Code.PERMISSION_DENIED,
    Reason.DEADLINE: Code.DEADLINE_EXCEEDED,
    Reason.CANCELLED: Code.CANCELLED,
    Reason.SHUTTING_DOWN: Code.UNAVAILABLE,
    Reason.INTERNAL: Code.INTERNAL,
}


class HearthError(Exception):
    """Error with a message of one or two sentences: the failure, both numbers, and the remedy.

    `reason` is UPPER_SNAKE, for programs; `code` defaults to the reason's in CODES;
    `metadata` holds the message's facts as text, by lowerCamel key.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, object] | None = None,
        code: Code | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = str(reason)
        self.message = message
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.code = code or CODES.get(reason, Code.UNKNOWN)

    def copy(self, **facts: object) -> HearthError:
        """The same error without traceback, cause and context; `facts` where metadata lacks them.

        Keep such a copy where an error outlives the call that raised it: a traceback holds the
        frames, and these everything that the call had in memory.
        """
        return HearthError(self.reason, self.message, {**facts, **self.metadata}, self.code)
