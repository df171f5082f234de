"""Model files of every format, damaged: each is read to its end or refused with a ModelError."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf_families
import numpy as np
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
    write_gguf,
    write_hf,
)
from fuzzing import (
    EDGES,
    Draw,
    changed,
    damaged,
    fuzzed,
    integers,
    json_values,
    nested,
    paths,
)
from fuzzing import read_whole as use
from hypothesis import given
from hypothesis import strategies as st

from hearth.converter.convert import convert
from hearth.converter.tokenizers.sentencepiece import build_model

SPEC = tiny_spec(hidden_size=32, heads=2, kv_heads=1, ffn_size=32, vocab_size=280, layers=1)
TENSORS = random_tensors(SPEC)


# -- GGUF ------------------------------------------------------------------------------------------


class Pieces:
    """A GGUF file as its fields, one after another, each with what kind it is."""

    def __init__(self, values: dict[str, Any], tensors: dict[str, Any]) -> None:
        self.all: list[tuple[str, bytes]] = [
            ("magic", b"GGUF"),
            ("u32", struct.pack("<I", 3)),
            ("u64", struct.pack("<Q", len(tensors))),
            ("u64", struct.pack("<Q", len(values))),
        ]
        for key, value in values.items():
            self._string(key)
            self._value(gguf_value(value))
        body, size = b"", 0
        for name, (kind, shape, data) in tensors.items():
            self._string(name)
            self.all.append(("u32", struct.pack("<I", len(shape))))
            self.all += [("u64", struct.pack("<Q", length)) for length in reversed(shape)]
            self.all.append(("u32", struct.pack("<I", kind)))
            self.all.append(("u64", struct.pack("<Q", size)))
            padded = data + b"\0" * (-len(data) % 32)
            body, size = body + padded, size + len(padded)
        self.body = body

    def _string(self, text: str) -> None:
        raw = gguf_string(text)
        self.all += [("u64", raw[:8]), ("text", raw[8:])]

    def _value(self, raw: bytes) -> None:
        kind = struct.unpack("<I", raw[:4])[0]
        self.all.append(("u32", raw[:4]))
        if kind == 8:
            self.all += [("u64", raw[4:12]), ("text", raw[12:])]
        elif kind == 9:
            self.all += [("u32", raw[4:8]), ("u64", raw[8:16]), ("items", raw[16:])]
        else:
            self.all.append(("scalar", raw[4:]))


BYTE_PAIRS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*(chr(code) for code in range(33, 127)), "ab", "<|end|>"],
    "tokenizer.ggml.token_type": [*[1] * 95, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 95,
    "tokenizer.chat_template": "{{ messages[0].content }}",
    "general.alignment": 32,
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 2.0,
}


def of_family(name: str) -> Pieces:
    """One of gguf_families.CASES, all of ones."""
    case = gguf_families.CASES[name]
    return Pieces(
        gguf_families.metadata(case),
        {
            each: (0, shape, np.ones(shape, "<f4").tobytes())
            for each, shape in gguf_families.shapes(case).items()
        },
    )


FAMILIES = ("gemma4, experts", "gemma4, inputs of layers", "deepseek2, lite, joint", "qwen35moe")
FILES = [
    Pieces(gguf_metadata(SPEC) | spm_metadata(280), gguf_tensors(SPEC, TENSORS, "q4_0")),
    Pieces(gguf_metadata(SPEC) | BYTE_PAIRS, gguf_tensors(SPEC, TENSORS, "f16")),
    *map(of_family, FAMILIES),
]
KEYS = [*gguf_metadata(SPEC), *spm_metadata(280), *BYTE_PAIRS]
KEYS += [key for name in FAMILIES for key in gguf_families.metadata(gguf_families.CASES[name])]


def change_pieces(draw: Draw, file: Pieces) -> bytes:
    """The file with some of its fields changed, and then often still well formed around them."""
    parts = list(file.all)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(parts) - 1))
        kind, raw = parts[place]
        what = draw(st.sampled_from(["value", "value", "value", "drop", "twice", "swap", "bytes"]))
        if what == "drop":
            del parts[place]
        elif what == "twice":
            end = min(len(parts), place + draw(st.sampled_from([1, 2, 4, 5])))
            parts[place:place] = parts[place:end]
        elif what == "swap":
            other = draw(st.integers(0, len(parts) - 1))
            parts[place], parts[other] = parts[other], parts[place]
        elif what == "bytes" or kind not in ("u32", "u64", "text"):
            parts[place] = kind, damaged(draw, raw or b"\0")
        elif kind == "text":
            text = draw(
                st.sampled_from([key.encode() for key in KEYS])
                | st.sampled_from([b"\xff\xfe", b"", b"\0", b"a" * 300, b"\xed\xa0\x80"])
            )
            keep = draw(st.booleans())
            parts[place] = kind, text[: len(raw)].ljust(len(raw), b"a") if keep else text
        else:
            size = len(raw)
            small = st.integers(0, 16) if size == 4 else st.integers(0, 400)
            number = draw(small | integers) & ((1 << 8 * size) - 1)
            parts[place] = kind, number.to_bytes(size, "little")
    head = b"".join(raw for _, raw in parts)
    return head + b"\0" * (-len(head) % 32) + file.body


def gguf_file(draw: Draw) -> bytes:
    file = draw(st.sampled_from(FILES))
    data = change_pieces(draw, file)
    if draw(st.integers(0, 7)) == 0:
        data = damaged(draw, data, len(data) - len(file.body) if draw(st.booleans()) else None)
    return data


@fuzzed(22, 60)
@given(data=st.data())
def test_gguf(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(gguf_file(data.draw))
    use(path)


def parts_of(count: int) -> list[Pieces]:
    """The first of FILES in parts, each with every count-th tensor."""
    tensors = gguf_tensors(SPEC, TENSORS, "q4_0")
    parts = []
    for number in range(count):
        own = {
            name: value for i, (name, value) in enumerate(tensors.items()) if i % count == number
        }
        values = gguf_metadata(SPEC) | spm_metadata(280) if number == 0 else {}
        split = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        parts.append(Pieces(values | split, own))
    return parts


PARTS = parts_of(3)


def put_parts(folder: Path, contents: list[bytes]) -> list[Path]:
    """The parts' files, and none from before."""
    for old in folder.iterdir():
        old.unlink()
    paths = [folder / f"m-{n:05}-of-{len(contents):05}.gguf" for n in range(1, len(contents) + 1)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def whole(file: Pieces) -> bytes:
    head = b"".join(raw for _, raw in file.all)
    return head + b"\0" * (-len(head) % 32) + file.body


def test_the_undamaged_parts_are_read(tmp_path: Path) -> None:
    for path in put_parts(tmp_path, [whole(part) for part in PARTS]):
        assert use(path)


@fuzzed(6, 20)
@given(data=st.data())
def test_gguf_in_parts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One part changed; also absent, another's, or of another number by its name."""
    contents = [whole(part) for part in PARTS]
    place, other = (data.draw(st.integers(0, len(PARTS) - 1)) for _ in range(2))
    what = data.draw(st.sampled_from(["change", "change", "change", "absent", "other"]))
    if what == "change":
        contents[place] = change_pieces(data.draw, PARTS[place])
    elif what == "other":
        contents[place] = contents[other]
    folder = tmp_path_factory.getbasetemp() / "parts"
    folder.mkdir(exist_ok=True)
    paths = put_parts(folder, contents)
    opened = data.draw(st.sampled_from(paths))
    if what == "absent":
        paths[place].unlink()
    use(opened)


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    for file in FILES:
        path = tmp_path / "x.gguf"
        head = b"".join(raw for _, raw in file.all)
        path.write_bytes(head + b"\0" * (-len(head) % 32) + file.body)
        assert use(path)


# -- safetensors, config.json, Hearth directories --------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Hugging Face directory, one of two shards, and what `hearth convert` makes of it."""
    base = tmp_path_factory.mktemp("folders")
    one = write_hf(base / "one", SPEC, TENSORS)
    two = write_hf(base / "two", SPEC, TENSORS, kind="bf16", shards=2)
    for folder in (one, two):
        (folder / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(280), {}))
    made = base / "hearth"
    convert(str(write_gguf(base / "x.gguf", SPEC, TENSORS)), made, "q4_0")
    return {"one": one, "two": two, "hearth": made}


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


class Replaced:
    """A file with other content, until left."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content
        self.original = path.read_bytes() if path.exists() else None

    def __enter__(self) -> None:
        self.path.write_bytes(self.content)

    def __exit__(self, *_: object) -> None:
        if self.original is None:
            self.path.unlink()
        else:
            self.path.write_bytes(self.original)


def encoded(value: Any) -> bytes:
    """JSON with what Python lets pass: NaN, infinities, halves of surrogate pairs."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


OTHER_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "F8_E4M3", "I64", "X", ""]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 32, 280, *EDGES]), max_size=9),
        "data_offsets": st.lists(st.sampled_from([0, 4, 64, 128, 4096, *EDGES]), max_size=3),
    }
)


@fuzzed(14, 40)
@given(data=st.data())
def test_safetensors(folders: dict[str, Path], data: st.DataObject) -> None:
    folder = folders[data.draw(st.sampled_from(sorted(folders)))]
    path = sorted(folder.glob("*.safetensors"))[-1]
    header, body = header_of(path.read_bytes())
    header = changed(data.draw, header, paths(header))
    if data.draw(st.booleans()) and isinstance(header, dict):
        name = data.draw(st.sampled_from([*header, "__metadata__", "x", ""]))
        header[name] = data.draw(OTHER_ENTRY)
    raw = encoded(header)
    length = data.draw(st.just(len(raw)) | st.just(len(raw)) | integers) & ((1 << 64) - 1)
    content = length.to_bytes(8, "little") + raw + body
    if data.draw(st.integers(0, 3)) == 0:
        content = damaged(data.draw, content, 8 + len(raw))
    with Replaced(path, content):
        use(folder)


@fuzzed(4, 15)
@given(data=st.data())
def test_indexes(folders: dict[str, Path], data: st.DataObject) -> None:
    path = folders["two"] / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    content = encoded(changed(data.draw, index, paths(index)))
    if data.draw(st.integers(0, 3)) == 0:
        content = damaged(data.draw, content)
    with Replaced(path, content):
        use(folders["two"])


CONFIG = hf_config(SPEC) | {
    "bos_token_id": 1,
    "eos_token_id": [2],
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "attention_bias": False,
    "rope_parameters": None,
}


@fuzzed(14, 40)
@given(data=st.data())
def test_configs(folders: dict[str, Path], data: st.DataObject) -> None:
    folder = folders[data.draw(st.sampled_from(sorted(folders)))]
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    config = CONFIG | {key: value for key, value in config.items() if key == "hearth"}
    places = [*paths(config), ("quantization_config",), ("generation",)]
    content = encoded(changed(data.draw, config, places))
    if data.draw(st.integers(0, 7)) == 0:
        content = damaged(data.draw, content)
    with Replaced(path, content):
        use(folder)


def sentencepiece_model() -> bytes:
    """A tokenizer.model of 280 pieces."""
    values = spm_metadata(280)
    pieces, scores, types = (
        values[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")
    )
    return build_model(pieces, scores, types, True, False, 1, 2)


SMALL_FILES = {
    "generation_config.json": {"eos_token_id": [1, 2], "bos_token_id": 1},
    "tokenizer_config.json": {
        "add_bos_token": True,
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
        "added_tokens_decoder": {"1": {"content": "<s>", "special": True}},
        "tokenizer_class": "LlamaTokenizer",
    },
    "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
}


@fuzzed(5, 20)
@given(data=st.data())
def test_small_files_beside_a_model(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    # A tokenizer.model, which reads all of them; tokenizer.gguf says everything itself.
    folder = tmp_path_factory.getbasetemp() / "small"
    if not folder.exists():
        shutil.copytree(folders["one"], folder)
        (folder / "tokenizer.gguf").unlink()
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    name = data.draw(st.sampled_from(sorted(SMALL_FILES)))
    value = SMALL_FILES[name]
    content = encoded(changed(data.draw, value, paths(value)))
    if data.draw(st.integers(0, 7)) == 0:
        content = damaged(data.draw, content)
    with Replaced(folder / name, content):
        use(folder)


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_deep_nesting_is_refused(folders: dict[str, Path], name: str, depth: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        content = b'{"eos_token_id":' + opening * depth + b"1" + closing * depth + b"}"
        with Replaced(folders["one"] / name, content):
            assert not use(folders["one"])


@fuzzed(1, 10)
@given(value=json_values)
def test_any_json_is_no_config(folders: dict[str, Path], value: Any) -> None:
    for content in (encoded(value), encoded(nested(value, 400))):
        with Replaced(folders["one"] / "config.json", content):
            assert not use(folders["one"])
