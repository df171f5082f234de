"""Makes gguf_families.npz: llama.cpp's logits of the files of tests/gguf_families.py.

Needs llama-cpp-python, built for this machine. Run it as

    PYTHONPATH=tests python tests/known/make_gguf_families.py [CASE ...]

Without names all are made again; with names the others stay.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf_families
import numpy as np

KNOWN = Path(__file__).with_name("gguf_families.npz")


def logits(path: Path, ids: list[int]) -> Any:
    """f32 [tokens, some of the vocabulary] by llama.cpp: KV in f32, plain attention, one thread."""
    llama_cpp = importlib.import_module("llama_cpp")
    model = llama_cpp.Llama(
        str(path),
        n_ctx=64,
        n_batch=64,
        n_threads=1,
        logits_all=True,
        type_k=0,
        type_v=0,
        flash_attn=False,
        verbose=False,
    )
    model.eval(ids)
    return np.array(model.scores[: len(ids), :: gguf_families.EVERY], dtype=np.float32)


def main() -> None:
    names = sys.argv[1:] or list(gguf_families.CASES)
    known = dict(np.load(KNOWN)) if KNOWN.is_file() and sys.argv[1:] else {}
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            path = Path(directory) / "model.gguf"
            ids = gguf_families.write(gguf_families.CASES[name], path)
            try:
                known[name] = logits(path, ids)
            except ValueError as error:
                print(f"{name}: {error}")
                continue
            print(f"{name}: spread {known[name].std():.2f}")
    np.savez_compressed(KNOWN, **{name: known[name] for name in sorted(known)})


if __name__ == "__main__":
    main()
