"""Weight streaming over loopback and a bare gRPC stream of 1 MiB chunks, in turn.

Both receive in a process of their own. The bare stream sends prepared bytes and drops them. The
other is a whole load: checksums, digests, disk cache (unless --cache none), packing for the CPU.

    python bench/weight_stream.py [--layers 12] [--rounds 5] [--cache none] [--tls] [--json]

With --tls the load uses mutual TLS; the bare stream stays plain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt

from hearth import _native
from hearth.common import pki
from hearth.common.channels import (
    CHUNK_BYTES,
    PROTOCOL_VERSION,
    channel_options,
    dial,
    server_options,
)
from hearth.common.security import Security
from hearth.common.system import keep_message_memory
from hearth.root.cluster.streaming import stream_weights
from hearth.v1 import common_pb2, worker_pb2
from hearth.worker.shard import NodeShard, slice_bytes

_HIDDEN, _FFN, _HEAD = 2048, 5632, 64
_TYPES = {
    "f32": common_pb2.WEIGHT_TYPE_F32,
    "f16": common_pb2.WEIGHT_TYPE_F16,
    "q80": common_pb2.WEIGHT_TYPE_Q80,
    "q40": common_pb2.WEIGHT_TYPE_Q40,
}


def plan(layers: int, weights: str) -> tuple[worker_pb2.LoadBegin, list[npt.NDArray[np.uint8]]]:
    """TinyLlama's layers (heads 32, KV heads 4), random, and their bytes."""
    config = common_pb2.ShardConfig(
        hidden_size=_HIDDEN,
        layers=common_pb2.Range(begin=0, end=layers),
        kinds=[
            common_pb2.Block(
                attention=common_pb2.Attention(
                    heads=common_pb2.Range(begin=0, end=32),
                    kv_heads=common_pb2.Range(begin=0, end=4),
                    key_size=_HEAD,
                    value_size=_HEAD,
                    scale=_HEAD**-0.5,
                ),
                feed_forward=common_pb2.FeedForward(
                    units=common_pb2.Range(begin=0, end=_FFN),
                    activation=common_pb2.ACTIVATION_SILU,
                    gated=True,
                ),
                input_norms=True,
                residual_scale=1.0,
            )
        ],
        kind_of_layer=[0] * layers,
        norm=common_pb2.NORM_KIND_RMS,
        norm_epsilon=1e-5,
        embedding_scale=1.0,
        logit_scale=1.0,
        kv_type=common_pb2.KV_TYPE_F16,
        vocab_size=32000,
        page_size=16,
        max_pages=16,
        max_step_tokens=32,
    )
    begin = worker_pb2.LoadBegin(
        protocol_version=PROTOCOL_VERSION,
        lease=worker_pb2.Lease(root_id="bench", root_name="bench", epoch=1),
        placement=common_pb2.Placement(stages=2, ranks=1),
        shard=config,
        lane=common_pb2.LANE_GRPC,
        sync_type=common_pb2.SYNC_TYPE_F32,
    )
    slices = []
    for seed, (name, (rows, columns)) in enumerate(NodeShard(config).expected().items()):
        kind = "f32" if rows == 1 else weights
        data = _native.random_slice(kind, seed, 0, rows, 0, columns, columns, 0.02)
        entry = begin.manifest.add(name=name, type=_TYPES[kind], rows=rows, columns=columns)
        entry.identity = hashlib.sha256(f"bench {name}".encode()).digest()
        entry.size_bytes = slice_bytes(entry)
        slices.append(data)
    return begin, slices


def load_seconds(
    begin: worker_pb2.LoadBegin, slices: list[npt.NDArray[np.uint8]], cache: str, tls: bool
) -> float:
    """Load everything into a new worker with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--cache-dir", f"{folder}/cache" if cache == "disk" else "none"]
        security = None
        if tls:
            pki.make(Path(folder), [], 60)
            security = Security(Path(folder) / "root")
            options += ["--tls", f"{folder}/worker"]
        command = [sys.executable, "-m", "hearth.cli.main", "worker", "--listen", "127.0.0.1:0"]
        worker = _serve([*command, "--exit-with-parent", str(os.getpid()), *options])
        try:
            with dial(worker[1], security) as channel:
                _ready(channel)
                started = time.perf_counter()
                stream_weights(channel, begin, lambda i, a, b: slices[i][a:b], worker=worker[1])
                return time.perf_counter() - started
        finally:
            worker[0].terminate()
            worker[0].wait()


def bare_seconds(size: int) -> float:
    """Send `size` bytes through a gRPC stream that drops them."""
    server = _serve([sys.executable, __file__, "--serve"])
    data = os.urandom(CHUNK_BYTES)

    def chunks() -> Iterator[bytes]:
        for _ in range(size // CHUNK_BYTES):
            yield data
        yield data[: size % CHUNK_BYTES]

    try:
        with grpc.insecure_channel(server[1], options=channel_options()) as channel:
            _ready(channel)
            started = time.perf_counter()
            list(channel.stream_stream("/bench/Sink")(chunks()))
            return time.perf_counter() - started
    finally:
        server[0].terminate()
        server[0].wait()


class _Sink(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def drop(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            for _ in requests:
                pass
            yield b"done"

        return grpc.stream_stream_rpc_method_handler(drop)


def _serve_sink() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=server_options())
    server.add_generic_rpc_handlers((_Sink(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)


def _serve(command: list[str]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.split()[-1]


def _ready(channel: grpc.Channel) -> None:
    connected = threading.Event()
    channel.subscribe(
        lambda state: connected.set() if state is grpc.ChannelConnectivity.READY else None, True
    )
    connected.wait(10)


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=12, help="layers of TinyLlama's width")
    parser.add_argument("--weights", choices=_TYPES, default="q40")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", choices=["disk", "none"], default="disk")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve_sink()
        return
    keep_message_memory()
    begin, slices = plan(options.layers, options.weights)
    size = sum(data.size for data in slices)
    load, bare = [], []
    for _ in range(options.rounds):
        bare.append(size / 1e6 / bare_seconds(size))
        load.append(size / 1e6 / load_seconds(begin, slices, options.cache, options.tls))
    result = {
        "megabytes": round(size / 1e6, 1),
        "weights": options.weights,
        "cache": options.cache,
        "tls": options.tls,
        "bare_megabytes_per_second": round(statistics.median(bare), 1),
        "load_megabytes_per_second": round(statistics.median(load), 1),
    }
    result["ratio"] = round(statistics.median(load) / statistics.median(bare), 2)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28} {value}")
        print(f"{'bare, each round':28} {[round(value) for value in bare]}")
        print(f"{'load, each round':28} {[round(value) for value in load]}")


if __name__ == "__main__":
    main()
