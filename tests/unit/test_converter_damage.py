"""Damaged files: truncated, mutated or lying, every one is read or refused with a ModelError."""

import json
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_string,
    gguf_tensors,
    gguf_value,
    hf_config,
    random_tensors,
    spm_metadata,
    tiny_spec,
    write_hf,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.converter import ModelError, open_model
from hearth.converter.files import OpenFile
from hearth.converter.readers.gguf_file import parse
from hearth.converter.readers.safetensors_file import read_header

SPEC = tiny_spec(hidden_size=32, heads=2, kv_heads=1, ffn_size=32, vocab_size=280, layers=1)
TENSORS = random_tensors(SPEC)
METADATA = gguf_metadata(SPEC) | spm_metadata(280)
GGUF = gguf_bytes(METADATA, gguf_tensors(SPEC, TENSORS, "q4_0"))
HEADER = len(gguf_bytes(METADATA, {})) + 12 * 60  # metadata and most of the tensor list


def use(source: Path) -> None:
    """Opens a model and reads all of it, in bounded memory, or is refused."""
    tracemalloc.start()
    try:
        with open_model(str(source)) as model:
            model.tokenizer()
            for name in model.spec.tensor_names():
                model.read(name, model.tensor_type(name))
    except ModelError as error:
        assert str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 32 << 20


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_gguf(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    content = bytearray(GGUF)
    limit = data.draw(st.sampled_from([64, 600, HEADER, len(content)])) - 8
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, limit))
        size = data.draw(st.sampled_from([1, 4, 8]))
        edge = st.sampled_from([0, 1, 0x7FFFFFFF, (1 << 63) - 1, (1 << 64) - 1, 1 << 40])
        value = data.draw(edge | st.integers(0, (1 << 64) - 1)) & ((1 << 8 * size) - 1)
        content[place : place + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    use(path)


@settings(max_examples=100, deadline=None)
# The last bytes are padding, which no tensor needs.
@given(size=st.integers(0, len(GGUF) - 32) | st.integers(0, HEADER))
def test_truncated_gguf_is_always_refused(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.gguf"
    path.write_bytes(GGUF[:size])
    with pytest.raises(ModelError, match=r"truncated\.gguf"):
        open_model(str(path))


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_hf(tmp_path_factory.mktemp("hf") / "model", SPEC, TENSORS)
    (directory / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(280), {}))
    return directory


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_safetensors(hf: Path, data: st.DataObject) -> None:
    path = hf / "model.safetensors"
    original = path.read_bytes()
    content = bytearray(original)
    length = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 7) | st.integers(0, length - 1))
        content[place] = data.draw(
            st.integers(0, 255) | st.sampled_from(list(b'0123456789"{}[],:'))
        )
    end = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    path.write_bytes(content[:end])
    try:
        use(hf)
    finally:
        path.write_bytes(original)


@given(size=st.integers(0, 1 << 17))
@settings(max_examples=50, deadline=None)
def test_truncated_safetensors_are_always_refused(hf: Path, size: int) -> None:
    path = hf / "model.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[: min(size, len(original) - 1)])
    try:
        with pytest.raises(ModelError, match=r"model\.safetensors"):
            open_model(str(hf))
    finally:
        path.write_bytes(original)


def header_of(tmp_path: Path, header: Any, body: bytes = bytes(64)) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    file = OpenFile(path)
    try:
        read_header(file)
    finally:
        file.close()


def entry(begin: int = 0, end: int = 8, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]} | changes


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(), "b": entry(4, 12)}, "tensors a and b overlap"),
        ({"a": entry(60, 68)}, "the file has"),
        ({"a": entry(8, 0)}, "spans bytes"),
        ({"a": entry(shape=[3])}, "needs 12 bytes, but has 8"),
        ({"a": entry(shape=[1 << 61, 1 << 61])}, "needs"),
        ({"a": entry(shape=[-2])}, "lacks a usable"),
        ({"a": entry(shape=[True, 2])}, "lacks a usable"),
        ({"a": entry(shape=[1] * 9)}, "lacks a usable"),
        ({"a": entry(data_offsets=[0])}, "lacks a usable"),
        ({"a": entry(data_offsets=[0.0, 8.0])}, "lacks a usable"),
        ({"a": {}}, "lacks a usable"),
        ({"a": 3}, "not a JSON object"),
        ([], "not a JSON object"),
        ({"__metadata__": {"a": 1}}, "__metadata__"),
        (b'{"a": 1, "a": 2}', "occurs twice"),
        (b"[" * 10_000, "damaged safetensors header"),
        (b"\xff\xfe", "damaged safetensors header"),
    ],
)
def test_lying_safetensors_headers(tmp_path: Path, header: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        header_of(tmp_path, header)


@pytest.mark.parametrize("length", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_not_allocated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 40)
    with pytest.raises(ModelError, match=f"claims a header of {length} bytes"):
        read_header(OpenFile(path))


def test_indexes_that_lead_elsewhere(tmp_path: Path) -> None:
    directory = write_hf(tmp_path / "m", SPEC, TENSORS, shards=2)
    index = directory / "model.safetensors.index.json"
    for name in ("../m/x.safetensors", "/etc/passwd", 3, "x.bin", ""):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ModelError, match="not a safetensors file beside it"):
            open_model(str(directory))
    for text in ("{}", '{"weight_map": []}', "[", '{"weight_map": {}}'):
        index.write_text(text)
        with pytest.raises(ModelError, match=r"index\.json"):
            open_model(str(directory))


def pairs(*raw: bytes, tensors: int = 0, count: int | None = None) -> bytes:
    counts = struct.pack("<QQ", tensors, len(raw) if count is None else count)
    return b"GGUF" + struct.pack("<I", 3) + counts + b"".join(raw)


KEY = gguf_string("k")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GGML" + bytes(40), "begins with b'GGML'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(9), "version 1 is not supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(9), "version 50331648"),
        (pairs(tensors=1 << 60), "claims 1152921504606846976 tensors"),
        (pairs(count=1 << 60), "1152921504606846976 metadata"),
        (pairs(struct.pack("<Q", 1 << 62) + bytes(9)), "limit is 65535"),
        (pairs(KEY + struct.pack("<I", 13) + bytes(9)), "unknown type 13"),
        (pairs(KEY + struct.pack("<IQ", 8, 1 << 62) + bytes(9)), "claims"),
        (pairs(KEY + struct.pack("<IIQ", 9, 10, 1 << 61) + bytes(9)), "claims .* items"),
        (pairs(KEY + struct.pack("<IIQ", 9, 8, 1 << 61) + bytes(9)), "claims .* items"),
        (pairs(KEY + struct.pack("<IIQ", 9, 9, 1) + bytes(9)), "an array of type 9"),
        (pairs(KEY + gguf_value(1), KEY + gguf_value(2)), "'k' occurs twice"),
        (pairs(struct.pack("<Q", 2) + b"\xff\xff" + gguf_value(1) + bytes(9)), "not valid UTF-8"),
        (gguf_bytes({"general.alignment": 0}, {}), "general.alignment is 0"),
        (gguf_bytes({"general.alignment": 12}, {}), "general.alignment is 12"),
        (pairs(KEY + struct.pack("<IIQ", 9, 0, 1 << 24) + bytes(1 << 24)), "limit is 8388608"),
        (pairs(count=1 << 17) + bytes(2 << 20), "131072 metadata entries; the limit"),
        (gguf_bytes({}, {"a": (0, (1,) * 5, b"")}), "5 dimensions"),
        (gguf_bytes({}, {"a": (0, (), b"")}), "0 dimensions"),
        (gguf_bytes({}, {"a": (0, (0, 4), b"")}), "impossible shape"),
        (gguf_bytes({}, {"a": (0, (1 << 32,) * 4, b"")}), "impossible shape"),
        (gguf_bytes({}, {"a" * 300: (0, (1,), b"")}), "300 bytes; the limit is 255"),
    ],
)
def test_lying_gguf_headers(content: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse(Path("x.gguf"), memoryview(content))


def test_tensors_outside_a_gguf_file_or_twice_in_it() -> None:
    def info(name: str, offset: int) -> bytes:
        return gguf_string(name) + struct.pack("<IQIQ", 1, 4, 0, offset)

    for infos, words in (
        ([info("a", 1 << 40)], "but the file has"),
        ([info("a", 7)], "not a multiple of 32"),
        ([info("a", 0), info("a", 0)], "occurs twice"),
    ):
        content = pairs(tensors=len(infos)) + b"".join(infos) + bytes(64)
        with pytest.raises(ModelError, match=words):
            parse(Path("x.gguf"), memoryview(content))


def test_gguf_version_2_is_read_as_well() -> None:
    content = gguf_bytes({"a": [1, 2], "b": ["x", "é"], "c": True, "d": 0.5}, {}, version=2)
    parsed = parse(Path("x.gguf"), memoryview(content))
    assert parsed.values == {"a": [1, 2], "b": ["x", "é"], "c": True, "d": 0.5}


def test_a_tokenizer_of_another_model_is_refused_with_both_sizes(hf: Path, tmp_path: Path) -> None:
    directory = tmp_path / "m"
    shutil.copytree(hf, directory)
    (directory / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(581), {}))
    with pytest.raises(ModelError, match="581 tokens, the model's embedding only 280 rows"):
        open_model(str(directory)).tokenizer()
    (directory / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(272), {}))
    assert open_model(str(directory)).tokenizer().vocab_size == 272
    lacking = spm_metadata(272) | {"tokenizer.ggml.eos_token_id": 275}
    (directory / "tokenizer.gguf").write_bytes(gguf_bytes(lacking, {}))
    # As llama.cpp does with an id that is none of its tokens.
    assert open_model(str(directory)).tokenizer().eos_ids == {2}
    (directory / "tokenizer.gguf").unlink()
    with pytest.raises(ModelError, match="has no tokenizer; Hearth looks for"):
        open_model(str(directory)).tokenizer()


@given(changes=st.dictionaries(
    st.sampled_from(sorted(hf_config(SPEC))),
    st.integers() | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 64, 128]),
    min_size=1, max_size=3,
))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_a_config_with_other_numbers_never_costs_memory(hf: Path, changes: dict[str, int]) -> None:
    path = hf / "config.json"
    original = path.read_bytes()
    path.write_text(json.dumps(json.loads(original) | changes))
    try:
        use(hf)
    finally:
        path.write_bytes(original)
