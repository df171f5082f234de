"""One side of compare.py: llama.cpp (the package llama-cpp-python) with a model in memory.

Reads a line per run from standard input and answers with a JSON object: the rates, and the time of
each token. Runs in an environment of its own, without hearth.
"""

import argparse
import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np
from llama_cpp_rpc_server import library

# Rows of one step.
STEP = 512


class Engine:
    """A model with a context for some sequences."""

    def __init__(self, options: argparse.Namespace) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        if options.rpc:
            add_rpc_server(options.rpc)
            parameters.n_gpu_layers = options.rpc_layers
        elif options.gpu_layers:
            parameters.n_gpu_layers = options.gpu_layers
        model = llama_cpp.llama_model_load_from_file(options.model.encode(), parameters)
        each = options.depth + options.prompt_tokens + options.new_tokens + 32
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = options.sequences * each
        settings.n_seq_max = options.sequences
        settings.n_batch = settings.n_ubatch = STEP
        settings.n_threads = settings.n_threads_batch = options.threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        vocab = llama_cpp.llama_model_get_vocab(model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(STEP, 0, 1)

    def decode(self, rows: list[tuple[int, int, int]], outputs: set[int]) -> list[int]:
        """A step of rows (token, position, sequence): the best next token of each output row."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for row, (token, position, sequence) in enumerate(rows):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = row in outputs
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        return [self._best(row) for row in sorted(outputs)]

    def prefill(self, tokens: list[int], start: int, sequence: int) -> int:
        """Prefill one sequence from position `start` on; its next token."""
        next_token = 0
        for begin in range(0, len(tokens), STEP):
            part = tokens[begin : begin + STEP]
            rows = [(token, start + begin + i, sequence) for i, token in enumerate(part)]
            (next_token,) = self.decode(rows, {len(rows) - 1})
        return next_token

    def forget(self, sequence: int, start: int) -> None:
        """Drop a sequence's positions from `start` on."""
        memory = llama_cpp.llama_get_memory(self._context)
        if not llama_cpp.llama_memory_seq_rm(memory, sequence, start, -1):
            raise RuntimeError("llama_memory_seq_rm failed")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab,))))


def add_rpc_server(endpoint: str) -> None:
    """Lets llama.cpp see the devices of an RPC server: they count as GPUs."""
    rpc, ggml = library("ggml-rpc"), library("ggml")
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    found = rpc.ggml_backend_rpc_add_server(endpoint.encode())
    if not found:
        raise RuntimeError(f"no RPC server answers at {endpoint}")
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register(found)


def random_tokens(count: int, *seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(300, 32000, count).tolist()
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--rpc", default="", help="host:port of an RPC server")
    parser.add_argument("--rpc-layers", type=int, default=0, help="layers that the server computes")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers that the GPU computes")
    options = parser.parse_args()
    if options.gpu_layers and not llama_cpp.llama_supports_gpu_offload():
        raise SystemExit("this llama.cpp finds no GPU")
    engine = Engine(options)
    depth, count, sequences = options.depth, options.prompt_tokens, range(options.sequences)
    for sequence in sequences:
        engine.prefill(random_tokens(depth, sequence), 0, sequence)
    print(json.dumps({"engine": f"llama.cpp ({llama_cpp.__version__})"}), flush=True)
    for run, _ in enumerate(sys.stdin):
        for sequence in sequences:
            engine.forget(sequence, depth)
        start = time.perf_counter()
        tokens = [engine.prefill(random_tokens(count, 1 + run, s), depth, s) for s in sequences]
        times = [time.perf_counter() - start]
        for step in range(options.new_tokens - 1):
            position = depth + count + step
            rows = [(token, position, sequence) for sequence, token in enumerate(tokens)]
            tokens = engine.decode(rows, set(sequences))
            times.append(time.perf_counter() - start)
        answer = {
            "prefill": len(sequences) * count / times[0],
            "decode": len(sequences) * (len(times) - 1) / (times[-1] - times[0]),
            "token_seconds": times,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
