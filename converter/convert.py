"""Conversion of any model to a Hearth directory, tensor by tensor, all or nothing.

The new directory is written beside its destination and renamed when it is complete. Memory is
bounded by some blocks of rows, whatever the model's size.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from hearth.common import system_files
from hearth.converter.errors import ModelError
from hearth.converter.mixes import check_weights
from hearth.converter.model import Model
from hearth.converter.readers import open_model
from hearth.converter.readers.hearth import VERSION
from hearth.converter.readers.huggingface import SINGLE
from hearth.converter.readers.safetensors_file import SafetensorsWriter
from hearth.converter.recommended import FILE, sampling_file
from hearth.converter.spec_json import spec_to_json
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.converter.weights import Bytes, is_quantized, row_bytes

# (tensor just written, bytes written, bytes in all)
Progress = Callable[[str, int, int], None]

_BLOCK_BYTES = 2 << 20
# The K-quants search for each block's scales, which takes most of the time.
_THREADS = min(8, os.cpu_count() or 1)
_SPARE_BYTES = 16 << 20
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def convert(
    source: str,
    dest: Path,
    weights: str = "q4_0",
    progress: Progress | None = None,
    pre: str | None = None,
    tokenizer: str | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Path:
    """Convert a model (anything `open_model` takes) to a Hearth directory; returns `dest`.

    weights: the type of the matrices, or a mix. Matrices whose rows do not divide into its blocks
    get the type's fallback.
    pre, tokenizer: see open_model. note: receives each of the model's notes.

    Raises:
        ModelError: the source cannot be read, the destination exists, or the disk is too small.
            Nothing is left behind, as after any other failure or KeyboardInterrupt.
    """
    weights = check_weights(weights)
    if dest.exists() or dest.is_symlink():
        raise ModelError(f"{dest} exists already; give another destination, or remove it first")
    parent = dest.resolve().parent
    if not parent.is_dir():
        raise ModelError(f"{parent} is not a directory; create it first")
    with open_model(source, weights, pre, tokenizer) as model:
        for line in model.notes:
            note(line)
        files = model.tokenizer_source.files()
        if files:
            model.tokenizer()  # report it now, not when the converted model is first used
        if model.sampling_defaults:
            files = {**files, FILE: sampling_file(model.sampling_defaults)}
        partial = parent / f".{dest.name}.{os.getpid()}.partial"
        try:
            partial.mkdir()
            _write(model, partial, weights, files, progress)
            system_files.sync_folder(partial)
            if dest.exists():
                raise ModelError(f"{dest} was created during the conversion; nothing was replaced")
            partial.rename(dest)
            system_files.sync_folder(parent)
        except OSError as error:
            raise ModelError(f"cannot write {dest}: {error.strerror or error}") from error
        finally:
            # Already renamed after success; then there is nothing to remove.
            shutil.rmtree(partial, ignore_errors=True)
    return dest


def _write(
    model: Model,
    directory: Path,
    weights: str,
    files: dict[str, Path | bytes],
    progress: Progress | None,
) -> None:
    kinds = {name: model.tensor_type(name) for name in model.spec.tensor_names()}
    layout: list[tuple[str, str, tuple[int, ...]]] = []
    metadata = {"format": "pt"}
    for name, kind in kinds.items():
        rows, columns = model.spec.tensor_shape(name)
        if is_quantized(kind):
            metadata[name] = kind
            layout.append((name, "U8", (rows, row_bytes(kind, columns))))
        else:
            layout.append((name, _DTYPES[kind], (rows, columns)))
    writer = SafetensorsWriter(directory / SINGLE, layout, metadata)
    _check_space(directory, writer.size, files)
    for file_name, content in files.items():
        (directory / file_name).parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            (directory / file_name).write_bytes(content)
        else:
            shutil.copyfile(content, directory / file_name)
    config = json.dumps(_config(model, weights), indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(config, encoding="utf-8")
    total = writer.tensor_bytes
    done = 0
    with writer, closing(_blocks(model, kinds)) as blocks:
        for name, data in blocks:
            writer.write(data.data)
            done += data.nbytes
            if progress is not None:
                progress(name, done, total)


def _blocks(model: Model, kinds: Mapping[str, str]) -> Generator[tuple[str, Bytes], None, None]:
    """Every tensor in blocks of rows, in order; threads convert the next ones meanwhile."""
    pool = ThreadPoolExecutor(_THREADS, "convert")
    waiting: deque[tuple[str, Future[Bytes]]] = deque()
    try:
        for name, kind in kinds.items():
            rows, columns = model.spec.tensor_shape(name)
            step = max(1, _BLOCK_BYTES // row_bytes(kind, columns))
            for begin in range(0, rows, step):
                cut = (begin, min(begin + step, rows))
                waiting.append((name, pool.submit(model.read, name, kind, cut)))
                if len(waiting) > _THREADS:
                    first, block = waiting.popleft()
                    yield first, block.result()
        for name, block in waiting:
            yield name, block.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _config(model: Model, weights: str) -> dict[str, Any]:
    source = model.tokenizer_source
    hearth: dict[str, Any] = {"version": VERSION, "weights": weights}
    if source.plain:
        hearth["tokenizer"] = PlainTokenizer.NAME
    hearth["spec"] = spec_to_json(model.spec)
    # The source's own settings decide about its tokenizer.
    ids = {"bos_token_id": source.bos_id, "eos_token_id": sorted(source.eos_ids) or None}
    return dict(model.config) | ids | {"hearth": hearth}


def _check_space(directory: Path, size: int, files: dict[str, Path | bytes]) -> None:
    size += sum(
        len(content) if isinstance(content, bytes) else content.stat().st_size
        for content in files.values()
    )
    free = shutil.disk_usage(directory).free
    if free < size + _SPARE_BYTES:
        raise ModelError(
            f"the converted model needs {size} bytes, but {directory.parent} has {free} free; make "
            "room, or choose smaller --weights, such as q4_0"
        )
