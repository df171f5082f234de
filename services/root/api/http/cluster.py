"""The cluster for the page: its state, its work, and taking workers out.

- GET /cluster: everything, as JSON
- GET /cluster/events: the same at every change, and the load about once a second
- POST /cluster/drain: {"worker": NAME, "undo": false}; for operators
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from hearth.common.access import check_allowed
from hearth.common.errors import HearthError
from hearth.root.api.http import streams
from hearth.root.api.http.call import EVENTS, Call
from hearth.root.api.http.errors import bad_request
from hearth.root.api.http.limits import HEARTBEAT_SECONDS
from hearth.root.api.http.requests import Services
from hearth.root.status.describe import waiting_reason
from hearth.v1 import common_pb2, root_pb2
from hearth.worker.shape import kv_page_bytes

Object = dict[str, Any]

LOAD_SECONDS = 1.0
# While a prompt of the client is read.
PREFILL_SECONDS = 0.25
# The gRPC method with the same rule of who may call it.
_DRAIN = "/hearth.v1.RootService/DrainWorker"


async def cluster(call: Call, services: Services) -> None:
    """GET /cluster."""
    await call.reply(_everything(services, services.frontend.cluster()))


async def events(call: Call, services: Services) -> None:
    """GET /cluster/events: events "cluster" and "load", until the client leaves."""
    call.end_when_gone()
    statuses = services.frontend.watch()
    try:
        status = await anext(statuses)
        await call.begin_stream(EVENTS)
        await call.write(streams.event(_everything(services, status), "cluster"))
        await _follow(call, services, statuses)
    except HearthError:
        if not call.status:
            raise
        await call.end()  # the root shuts down
    finally:
        await statuses.aclose()


async def drain(call: Call, services: Services) -> None:
    """POST /cluster/drain: answers when the cluster is ready without the worker, or with it."""
    check_allowed(call.caller, _DRAIN)
    body = await call.json()
    worker = body.text("worker")
    if not worker:
        raise bad_request("worker is missing; give its address or its name", "worker")
    status = await services.frontend.drain_worker(worker, body.flag("undo"))
    await call.reply(_everything(services, status))


ROUTES = {
    "/cluster": ("GET", cluster),
    "/cluster/events": ("GET", events),
    "/cluster/drain": ("POST", drain),
}


async def _follow(
    call: Call, services: Services, statuses: AsyncGenerator[root_pb2.ClusterStatus, None]
) -> None:
    """Send each change, and the load where it differs. Raises HearthError when the root ends."""
    clock = asyncio.get_running_loop().time
    sent: Object = {}
    when = 0.0
    coming = asyncio.ensure_future(anext(statuses))
    try:
        while True:
            now = _load(services)
            if now != sent or clock() - when >= HEARTBEAT_SECONDS:
                sent, when = now, clock()
                await call.write(streams.event({"seconds": time.monotonic(), **now}, "load"))
            pause = PREFILL_SECONDS if now["prefills"] else LOAD_SECONDS
            await asyncio.wait({coming}, timeout=pause)
            if coming.done():
                status = coming.result()
                coming = asyncio.ensure_future(anext(statuses))
                await call.write(streams.event(_everything(services, status), "cluster"))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def _everything(services: Services, status: root_pb2.ClusterStatus) -> Object:
    facts = services.current.frontend.model()
    return {
        "state": _word(root_pb2.ClusterState.Name(status.state), "CLUSTER_STATE"),
        "reason": waiting_reason(status),
        "epoch": status.epoch,
        "lane": _word(common_pb2.Lane.Name(status.lane), "LANE"),
        "sync_type": _word(common_pb2.SyncType.Name(status.sync_type), "SYNC_TYPE"),
        "model": {
            "name": facts.name,
            "architecture": facts.architecture,
            "parameters": facts.parameters,
            "layers": facts.layers,
            "context_size": facts.context_size,
            "weight_type": facts.weight_type,
            "has_chat_template": facts.has_chat_template,
        },
        "nodes": [_node(node) for node in status.nodes],
        "peers": [
            {
                "address": peer.address,
                "name": peer.name,
                "sources": list(peer.sources),
                "state": _word(root_pb2.PeerState.Name(peer.state), "PEER_STATE"),
                "reason": peer.reason,
            }
            for peer in status.peers
        ],
        "mesh": {
            "latency_seconds": status.mesh.latency_seconds,
            "bytes_per_second": status.mesh.bytes_per_second,
        }
        if status.HasField("mesh")
        else None,
        "notes": list(status.notes),
        "events": [asdict(event) for event in services.history.events()],
        "load": {"seconds": time.monotonic(), **_load(services)},
    }


def _node(node: root_pb2.ClusterNode) -> Object:
    info, place = node.info, node.placement
    return {
        "address": node.address,
        "name": info.name,
        "state": _word(root_pb2.NodeState.Name(node.state), "NODE_STATE"),
        "reason": node.reason,
        "stage": place.stage,
        "rank": place.rank,
        "threads": info.threads,
        "cores": info.cores,
        "instruction_set": info.instruction_set,
        "architecture": info.architecture,
        "version": info.version,
        "memory_total_bytes": info.memory_total_bytes,
        "memory_available_bytes": info.memory_available_bytes,
        "weight_bytes": node.weight_bytes,
        "weight_bytes_loaded": node.weight_bytes_loaded,
        "weight_bytes_from_network": node.weight_bytes_from_network,
        "weight_bytes_from_cache": node.weight_bytes_from_cache,
        "round_trip_seconds": node.round_trip_seconds,
        "page_bytes": kv_page_bytes(node.shard) if node.HasField("shard") else 0,
    }


def _load(services: Services) -> Object:
    """The root's work; prefills: of the caller's requests.

    It is sent with `seconds` of a clock that only runs forward, for rates between two loads.
    """
    prefills = [asdict(prefill) for each in services.listed for prefill in each.frontend.prefills()]
    return asdict(services.activity()) | {"prefills": prefills}


def _word(name: str, enum: str) -> str:
    """The name of an enum's value in lower case, without that of its enum: "serving"."""
    return name.removeprefix(f"{enum}_").lower()
