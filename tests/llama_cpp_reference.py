"""llama.cpp as a reference, by llama-cpp-python: its quantizer, and its loss on given token ids.

The package builds llama.cpp, which takes ten minutes. So only tests and tables of the parity stage
use it, where it is installed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hearth.converter.readers.gguf import read_gguf

# Numbers of llama_ftype, by Hearth's names and by llama.cpp's for types that only files have.
FTYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10,
    "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16,
    "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "bf16": 32, "tq1_0": 36, "tq2_0": 37,
    "iq3_xxs": 23, "iq3_s": 26, "mxfp4": 38, "q2_k_s": 21, "iq3_xs": 22, "iq3_m": 27,
    "iq2_xxs": 19, "iq2_xs": 20, "iq2_s": 28, "iq2_m": 29, "iq1_s": 24, "iq1_m": 31,
}  # fmt: skip
# Types that the quantizer makes with an importance matrix alone; here all weights have the same.
_BY_IMPORTANCE = ("iq1", "iq2", "q2_k_s", "iq3_xxs")
# Numbers of ggml_type, for one type in all matrices.
_MXFP4 = 39


def library() -> Any:
    """The package, silenced. Raises ImportError."""
    import llama_cpp

    if not hasattr(library, "callback"):
        callback = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(callback, ctypes.c_void_p())
        library.callback = callback  # type: ignore[attr-defined] # kept as long as it is set
    return llama_cpp


def quantize(source: Path, dest: Path, kind: str) -> None:
    """Write `dest` with the tensors of `source` in the usual mix of `kind`."""
    llama = library()
    params = llama.llama_model_quantize_default_params()
    params.nthread = 2
    params.allow_requantize = True
    params.ftype = FTYPES[kind]
    if kind == "mxfp4":  # which the quantizer otherwise leaves to experts
        params.ftype, params.pure = FTYPES["q8_0"], True
        kinds = (llama.llama_model_tensor_override * 2)()
        kinds[0].pattern, kinds[0].type = rb"ffn_(up|gate|down)", _MXFP4
        params.tt_overrides = kinds
    if kind.startswith(_BY_IMPORTANCE):
        params.imatrix = _same_importance(source)
    done = llama.llama_model_quantize(
        str(source).encode(), str(dest).encode(), ctypes.byref(params)
    )
    if done != 0:
        raise RuntimeError(f"llama.cpp cannot write {dest} in {kind}: {done}")


def _same_importance(source: Path) -> Any:
    """An importance of 1 for each column of each matrix of a GGUF file, as llama.cpp takes it."""
    llama = library()
    columns = {n: t.shape[-1] for n, t in read_gguf(source).tensors.items() if len(t.shape) > 1}
    rows = (llama.llama_model_imatrix_data * (len(columns) + 1))()  # the last one ends the list
    for row, (name, count) in zip(rows, columns.items(), strict=False):
        row.name, row.size = name.encode(), count
        row.data = (ctypes.c_float * count)(*[1.0] * count)
    return rows


def perplexity(path: Path, texts: Sequence[Sequence[int]], context: int) -> float:
    """exp of the mean loss of the tokens of `texts`, each after the first of its own tokens."""
    llama = library()
    model = llama.Llama(
        str(path), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=2, logits_all=True,
        verbose=False, type_k=0, type_v=0, flash_attn=False,
    )  # fmt: skip
    total, count = 0.0, 0
    for text in texts:
        ids = list(text[: context + 1])
        model.reset()
        model.eval(ids[:-1])
        rows = np.array(model.scores[: len(ids) - 1], dtype=np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        losses = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), ids[1:]]
        total += float(losses.sum())
        count += len(rows)
    model.close()
    return math.exp(total / count)
