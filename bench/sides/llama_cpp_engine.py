"""One side of compare.py: llama.cpp (the package llama-cpp-python) with a model in memory.

Reads a line per run from standard input and answers with a JSON object: the time of each token.
Runs in an environment of its own, without hearth.
"""

import argparse
import json
import sys
import time

import llama_cpp
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    options = parser.parse_args()
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        options.model.encode(), llama_cpp.llama_model_default_params()
    )
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = options.prompt_tokens + options.new_tokens + 32
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = options.threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode(tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (vocab,))))

    print(json.dumps({"engine": f"llama.cpp ({llama_cpp.__version__})"}), flush=True)
    for run, _ in enumerate(sys.stdin):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        prompt = np.random.default_rng(run).integers(300, 32000, options.prompt_tokens).tolist()
        start = time.perf_counter()
        for begin in range(0, len(prompt), 512):
            token = decode(prompt[begin : begin + 512])
        times = [time.perf_counter() - start]
        for _ in range(options.new_tokens - 1):
            token = decode([token])
            times.append(time.perf_counter() - start)
        print(json.dumps({"token_seconds": times}), flush=True)


if __name__ == "__main__":
    main()
