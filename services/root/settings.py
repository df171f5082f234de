"""Settings of a root: the command line's options, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it brings gRPC, which planning must not know
    from hearth.common.api_keys import ApiKeys
    from hearth.common.security import Security


@dataclass(frozen=True, slots=True)
class DraftShare:
    """The draft model that the root runs beside its part of the model: name, and its bytes."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Settings of a cluster. Types by name: "f32", "f16", "q80"; lanes "mesh", "grpc"."""

    workers: tuple[str, ...] = ()
    shares: tuple[float, ...] | None = None
    # How the model is divided: "auto", "tensor" (one stage), "pipeline" (stages of one rank), or
    # stages x ranks such as "2x3" or "2x1+1x2".
    parallel: str = "auto"
    # Layers of each stage; None: in proportion to the shares of its nodes.
    stages: tuple[int, ...] | None = None
    threads: int | None = None
    pin: tuple[int, ...] = ()
    # What the root's own node computes on: "cpu", or a GPU, "vulkan:N".
    device: str = "cpu"
    lane: str = "mesh"
    sync_type: str = "f32"
    kv_type: str = "f16"
    # Positions of one sequence; None: the model's, 4,096 at most.
    context: int | None = None
    # Sequences of full context that the KV cache has room for, where memory allows.
    sequences: int = 4
    page_size: int = 32
    max_step_tokens: int = 128
    # A step that takes longer is given up: some node hangs.
    step_seconds: float = 120.0
    # A worker that makes no progress for so long while it loads is left out.
    stall_seconds: float = 120.0
    memory_limit: int | None = None
    name: str = "root"
    # Of the root's calls to its workers; None: by plaintext, without a token.
    security: Security | None = None
    # Do not encrypt the mesh, although there is security.
    mesh_plain: bool = False
    # Draft tokens: "auto" (where they gain), "lookup" (wherever one is found), "draft" (always, by
    # the draft model), "off".
    speculate: str = "off"
    # The draft model, whose memory is the root's too.
    draft: DraftShare | None = None
    # Keep KV pages for prompts that begin with the same tokens.
    prefix_cache: bool = True
    # Folder of the KV pages that are kept on disk, None for none; and the most bytes in it.
    page_dir: Path | None = None
    page_limit: int | None = None
    # Measure nodes and links, choose the layout of "auto" by that, and state the expected speed.
    predict: bool = False
    # Use workers without which requests are expected to be faster, too.
    use_all_workers: bool = False
    # Where nodes take unequal times: "offer" says which shares would be faster, "auto" takes them
    # when no request runs, "off" does neither. Needs `predict`.
    rebalance: str = "offer"
    # "disk": where memory is too small, weights lie on each node's disk and are read in each step.
    weights_on: str = "memory"
    # Folder of the root's own weights on disk.
    disk_dir: Path | None = None
    # Folder in which the root's measured speeds are kept.
    speeds_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Joining:
    """Discovery of workers beside the static list, and waiting for them."""

    # "name:port" that lists workers, looked up again and again; "" for none.
    dns: str = ""
    # Look for workers that announce themselves on the LAN.
    mdns: bool = False
    # Workers before the cluster is formed first; None: all of a static list, else 1.
    min_workers: int | None = None
    # How long they may take to come at the start.
    join_seconds: float = 60.0
    # How long a lost worker is waited for before the model is divided over the rest.
    wait_seconds: float = 30.0
    # File that gets the story of the cluster's workers, as JSON lines; "" for none.
    story: str = ""


@dataclass(frozen=True, slots=True)
class Serving:
    """Settings of the ports for clients."""

    # "host:port"; port 0 takes any free one.
    listen: str = "127.0.0.1:7716"
    joining: Joining = field(default_factory=Joining)
    # With TLS; clients show an API key, or a certificate where there are no keys.
    security: Security | None = None
    api_keys: ApiKeys | None = None
    # Allows an address beyond loopback without TLS.
    insecure: bool = False
    # "host:port" of the plaintext port for health checks; None for none.
    health: str | None = None
    # "host:port" of the HTTP port; "" for none.
    http: str = ""
    # Serve without HTTP where another program has its port.
    http_may_fail: bool = False
    # Origins of pages that may call by HTTP; none: those of this machine.
    origins: tuple[str, ...] = ()
    # Requests by HTTP may name any model.
    any_model: bool = False
    # Of several models: seconds that one stays in memory without a request.
    keep_alive: float = 300.0
    # Pooling of vectors: "mean", "cls" or "last"; "" for the model's own.
    pooling: str = ""
    # Clients share the pages of the prefix cache, and may find out by time what others sent.
    share_prefixes: bool = False
    # How long running requests may take to finish at the end.
    shutdown_seconds: float = 10.0
