"""Checkpoints of torch.save, read as data: what they hold, and refusals of what they may not.

The archives are made here by hand, in the layout of torch 2; tests/parity reads torch's own.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_files as files
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.converter import ModelError
from hearth.converter.files import OpenFile
from hearth.converter.readers.pickled import read_pickle
from hearth.converter.readers.torch_checkpoint import Tensor, read_checkpoint
from hearth.converter.shown import shown

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
PLAIN = {
    "config": {"name": "naïve", "rate": 1e-3, "on": True, "off": False, "none": None},
    "numbers": [0, 1, 255, 65535, 65536, -1, 1 << 40, -(1 << 40), 1.5, float("inf")],
    "nested": ([(), ("a",), ("a", "b"), (1, 2, 3), (1, 2, 3, 4)], {"x": {1: "y"}}),
    "long": ["word"] * 300,
}


def read(path: Path) -> Any:
    file = OpenFile(path)
    try:
        return read_checkpoint(file)
    finally:
        file.close()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_of_every_protocol(protocol: int) -> None:
    data = pickle.dumps(PLAIN, protocol)
    assert read_pickle(data, "made", {}) == PLAIN


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_tensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    files.write_checkpoint(path, {"model": {"a": ARRAY, "b": ARRAY[1]}, "step": 7}, kind)
    found = read(path)
    assert found["step"] == 7
    first, second = found["model"]["a"], found["model"]["b"]
    assert (first.kind, first.shape, second.shape) == (kind, (3, 4), (4,))
    assert first.offset % 64 == 0
    raw = path.read_bytes()
    size = {"f32": 48, "f16": 24, "bf16": 24}[kind]
    assert raw[first.offset : first.offset + size] == files.element_bytes(ARRAY, kind)


def test_a_view_of_a_storage(tmp_path: Path) -> None:
    """Several tensors of one storage, as tied weights are saved."""
    path = tmp_path / "tied.pt"
    files.write_pickle(
        path, files.tensor_pickle("0", 12, 4, (2, 4), (4, 1)), {"0": ARRAY.tobytes()}
    )
    found = read(path)
    assert found.shape == (2, 4)
    raw = path.read_bytes()[found.offset :][:32]
    assert np.array_equal(np.frombuffer(raw, "<f4"), ARRAY[1:].ravel())


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (pickle.dumps(Evil(), 2), r"imports (posix|nt)\.system"),
        (pickle.dumps(Evil(), 4), r"imports (posix|nt)\.system"),
        (pickle.dumps(print, 2), r"imports (__builtin__|builtins)\.print"),
        (pickle.dumps({1, 2}, 4), "uses EMPTY_SET"),
        (pickle.dumps(bytearray(8), 5), "uses BYTEARRAY8"),
        (pickle.dumps(b"abc", 4), "uses SHORT_BINBYTES"),
        (pickle.dumps(np.float64(1), 4), r"imports numpy"),
        (pickle.dumps(OrderedDict(a=1), 2), r"imports collections\.OrderedDict"),
        (b"\x80\x02cos\nsystem\n.", r"imports os\.system"),
        (b"ios\nsystem\np0\n.", "uses INST|damaged"),
        (b"\x80\x02]Q.", "uses BINPERSID"),
        (b"\x80\x02}}b.", ""),
        (b"\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\1.", "64 bits"),
        (b"\x80\x02K\1K\2.", "one value"),
        (b"\x80\x02(.", "one value"),
        (b"\x80\x02.", "one value"),
        (b"\x80\x02", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02h\7.", "damaged"),
        (b"\x80\x02s.", "damaged"),
        (b"\x80\x02u.", "damaged"),
        (b"\x80\x02)R.", "damaged|known function"),
        (b"\x80\x02K\1)R.", "known function"),
        (b"\x80\x02}]K\1s.", "key"),
        (b"\x80\x02]K\1K\1s.", "not a dictionary"),
        (b"\x80\x02}K\1a.", "not a list"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"\x80\x02" + b"]" * 100 + b".", "one value"),
        (b"\x80\x02" + b"0" * (17 << 20) + b".", "the limit is"),
    ],
)
def test_pickles_that_are_not_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if data == b"\x80\x02}}b.":  # attributes of a dictionary, which are left out
        assert read_pickle(data, "made", {}) == {}
        return
    with pytest.raises(ModelError, match=problem) as refused:
        read_pickle(data, "made", {})
    assert "made" in str(refused.value)
    assert not list(tmp_path.iterdir())


def doubling(times: int) -> bytes:
    """Opcodes of a tuple that holds another twice, and so on."""
    return b")" + b"q\0h\0\x86" * times


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (doubling(40) + b"Q", r"a persistent id is \(\(\(\.\.\.\), "),
        (b"(X\7\0\0\0storage" + doubling(40) * 4 + b"tQ", "a storage is .*'storage', "),
        (b"ctorch._utils\n_rebuild_parameter\n" + doubling(40) + b"\x85R", "4194304 parts"),
        (b"ctorch\nSize\n(" + b"K\1" * 9 + b"t\x85R", "at most 8 numbers"),
        (b"ctorch\nSize\n]\x85R", "at most 8 numbers"),
        (b"ctorch\nSize\nX\3\0\0\0abc\x85R", "at most 8 numbers"),
        (b")" + b"\x85" * 100_000, "nested more than 100"),
        (b")" + b"\x85" * 100_000 + b"Q", "a persistent id"),
        (b"]q\0h\0a", "holds itself"),
        (b"}q\0X\1\0\0\0ah\0s", "holds itself"),
    ],
)
def test_values_that_grow(tmp_path: Path, data: bytes, problem: str) -> None:
    """Small files of values that are endless to show or to compare, or deeper than the stack."""
    path = tmp_path / "growing.pt"
    files.write_pickle(path, b"\x80\x02" + data + b".", {})
    with pytest.raises(ModelError, match=problem) as refused:
        read(path)
    assert len(str(refused.value)) < 1000


def test_a_size_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "size.pt"
    files.write_pickle(path, b"\x80\x02ctorch\nSize\nK\3K\4\x86\x85R.", {})
    assert read(path) == (3, 4)


def test_elements_that_calls_make_are_counted() -> None:
    """A file of 202 KB that copies a list of 2000 elements 40 thousand times."""
    start = b"\x80\x02](" + b"N" * 2000 + b"eq\0cmade\nlist\nq\1"
    data = start + b"(" + b"h\1h\0\x85R" * 40_000 + b"t."
    tracemalloc.start()
    with pytest.raises(ModelError, match="its calls make more than 1048576 values"):
        read_pickle(data, "made", {("made", "list"): list})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_calls_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearth.converter.readers.pickled._MAX_MADE", 100)
    data = b"\x80\x02(cmade\ndict\nq\1" + b"h\1)R" * 101 + b"t."
    with pytest.raises(ModelError, match="its calls make more than 100 values"):
        read_pickle(data, "made", {("made", "dict"): dict})
    assert read_pickle(data.replace(b"h\1)R", b"", 1), "made", {("made", "dict"): dict})


@given(value=st.recursive(st.integers() | st.text() | st.binary(), lambda inner: (
    st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
    | st.sets(st.integers())
)))  # fmt: skip
def test_what_is_shown_is_short(value: Any) -> None:
    text = shown(value)
    assert 0 < len(text) < 4000
    if isinstance(value, int) and abs(value) < 1 << 64:
        assert text == str(value)


def test_what_cannot_be_shown_whole() -> None:
    assert shown(1 << 100_000) == "a number of 100001 bits"
    assert shown(True) == "True"
    assert shown("ab") == "'ab'"
    assert shown({"a": [1, 2.5, None]}) == "{'a': [1, 2.5, None]}"
    assert shown(list(range(9))) == "[0, 1, 2, 3, ...]"
    assert shown([[[1]]]) == "[[[...]]]"
    assert len(shown("x" * 1000)) == 80


STORAGE = {"0": ARRAY.tobytes()}


@pytest.mark.parametrize(
    ("data", "storages", "problem"),
    [
        (files.tensor_pickle("0", 12, 0, (3, 5), (5, 1)), STORAGE, "ends at element 15"),
        (files.tensor_pickle("0", 12, 1, (3, 4), (4, 1)), STORAGE, "ends at element 13"),
        (files.tensor_pickle("0", 12, 0, (1 << 40, 1 << 40), (1, 1)), STORAGE, "ends at element"),
        (files.tensor_pickle("0", 12, 0, (4, 3), (1, 4)), STORAGE, "another order"),
        (files.tensor_pickle("0", 12, 0, (3, 4), (0, 0)), STORAGE, "another order"),
        (files.tensor_pickle("0", 12, 0, (-3, 4), (4, 1)), STORAGE, "impossible shape"),
        (files.tensor_pickle("0", 12, 0, (3, 4), (4,)), STORAGE, "impossible shape"),
        (files.tensor_pickle("0", 12, 0, (1,) * 9, (1,) * 9), STORAGE, "impossible shape"),
        (files.tensor_pickle("0", 13, 0, (3, 4), (4, 1)), STORAGE, "48 bytes, but should have 13"),
        (files.tensor_pickle("1", 12, 0, (3, 4), (4, 1)), STORAGE, "data/1 is missing"),
        (files.tensor_pickle("0", 12, 0, (3, 4), (4, 1), "OddStorage"), STORAGE, "imports torch"),
        (files.tensor_pickle("0", 12, 0, (3, 4), (4, 1), "Size"), STORAGE, "type 'torch.Size'"),
    ],
)
def test_tensors_that_lie(
    tmp_path: Path, data: bytes, storages: dict[str, bytes], problem: str
) -> None:
    path = tmp_path / "lying.pt"
    files.write_pickle(path, data, storages)
    with pytest.raises(ModelError, match=problem):
        read(path)


def test_archives_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    for content in (b"", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"not a checkpoint of torch\.save"):
            read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    with pytest.raises(ModelError, match=r"2 files data\.pkl"):
        read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10000)
    with pytest.raises(ModelError, match="compressed"):
        read(path)
    files.write_pickle(path, pickle.dumps(1, 2), {}, byteorder=b"big")
    with pytest.raises(ModelError, match="byte order"):
        read(path)


def test_a_large_directory_is_not_read(tmp_path: Path) -> None:
    """An archive whose end claims a directory of 200 MB, in a sparse file that has them."""
    path = tmp_path / "large.pt"
    size = 200 << 20
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 0, 0)
    with path.open("wb") as stream:
        stream.truncate(size)
        stream.seek(size)
        stream.write(end)
    tracemalloc.start()
    with pytest.raises(ModelError, match="the limit is"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def _checkpoint() -> bytes:
    stream = io.BytesIO()
    files.write_checkpoint(stream, {"model": {"a": ARRAY, "b": ARRAY[0]}, "args": PLAIN}, "f32")
    return stream.getvalue()


CHECKPOINT = _checkpoint()


@settings(max_examples=300)
@given(data=st.data())
def test_mutated_checkpoints(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Each is read to its end or refused in words, in bounded memory."""
    changed = bytearray(CHECKPOINT)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 4))
        size = data.draw(st.sampled_from([1, 2, 4]))
        value = data.draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]) | st.integers(0, 1 << 31))
        changed[place : place + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    content = bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])
    path = tmp_path_factory.getbasetemp() / "mutated.pt"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        read(path)
    except ModelError as error:
        assert str(error).strip()
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 << 20


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=4) | st.integers(0, 99), inner, max_size=5)
        | st.tuples(inner, inner)
    ),
    max_leaves=30,
)


@given(value=_VALUES, protocol=st.integers(2, 5))
def test_any_data_comes_back(value: Any, protocol: int) -> None:
    data = pickletools.optimize(pickle.dumps(value, protocol))
    assert repr(read_pickle(data, "made", {})) == repr(value)


@settings(max_examples=500)
@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"(]}"]))
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    known = {("torch", "FloatStorage"): dict}
    try:
        read_pickle(start + data + b".", "made", known, lambda id: Tensor("f32", (), 0))
    except ModelError as error:
        assert "made" in str(error)
