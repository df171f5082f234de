"""Files of distributed-llama (.m, .t): weights and ids equal those of the model's other files."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dllama_files as files
import numpy as np
import pytest
import sentencepiece
import tokenizers as library
from converter_builders import random_tensors, tiny_spec, write_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, trainers

from hearth.converter import ModelError, open_model
from hearth.converter.convert import convert
from hearth.converter.hf_config import read_spec
from hearth.converter.model import Model
from hearth.converter.readers.gguf import read_gguf
from hearth.converter.tokenizers import load_tokenizer
from hearth.converter.tokenizers.byte_level import BYTE_TO_CHARACTER, piece_bytes
from hearth.converter.tokenizers.dllama import read_vocabulary
from hearth.converter.tokenizers.gguf import load_gguf_tokenizer
from hearth.converter.tokenizers.merges import all_merges, merges_of

TEXTS = (
    "Once upon a time, there was a little girl named Lily.",
    " It's  fine:\n\n  don't\tpanic! 12345 + 67 = 12412",
    "Straße, naïve café — 你好，世界 🙂 Привет",
    "",
    "   ",
    "x" * 40,
)
SPEC = tiny_spec(hidden_size=32, heads=2, kv_heads=1, ffn_size=32, vocab_size=280, layers=2)
TOKENS = [b"<unk>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(256)), b" a", b"ab"]
TOKENIZER = files.tokenizer_bytes(TOKENS, [0.0] * len(TOKENS), 1, [2], "{{ messages }}")


@pytest.fixture
def demo() -> Iterator[Model]:
    with open_model("demo") as model:
        yield model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model of two layers, without a tokenizer."""
    directory = tmp_path_factory.mktemp("tiny") / "model"
    with open_model(str(write_hf(directory, SPEC, random_tensors(SPEC)))) as model:
        yield model


@pytest.fixture
def written(tmp_path: Path, tiny: Model) -> Path:
    """A `.m` file with its tokenizer beside it."""
    (tmp_path / "tiny.t").write_bytes(TOKENIZER)
    return files.write_model(tmp_path / "tiny.m", tiny)


def demo_tokenizer(model: Model, version: int = 2) -> bytes:
    tokens = files.byte_level_tokens(model.tokenizer())
    scores = [-float(id) for id in range(len(tokens))]
    return files.tokenizer_bytes(tokens, scores, 0, [1], "{{ bos_token }}", version)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("former", [False, True])
def test_weights(tmp_path: Path, demo: Model, kind: str, former: bool) -> None:
    """Both headers; the former one does not say the type."""
    path = files.write_model(tmp_path / "dllama_model_demo_q.m", demo, kind, former)
    with open_model(str(path)) as read:
        assert read.weight_type == kind
        assert read.spec.name == "demo_q"
        assert not read.spec.tied
        for name in read.spec.tensor_names():
            source = "embedding" if name == "head" else name
            used = read.tensor_type(name)
            assert used == ("f32" if name == "embedding" else read.stored_type(name))
            assert np.array_equal(read.read(name, used), demo.read(source, used)), name


QWEN3 = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 280,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "qwen3_moe", "norm_topk_prob": True, "tie_word_embeddings": False} | EXPERTS,
    ],
    ids=["dense", "experts"],
)
def test_qwen3(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    """The same tensors and the same shape as in a Hugging Face directory."""
    config = QWEN3 | changes
    spec = read_spec(config, "made")[1]
    arrays = {
        name: np.random.default_rng(place).standard_normal(shape, dtype=np.float32)
        for place, (name, shape) in enumerate(files.qwen3_shapes(config))
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(arrays, tmp_path / "model.safetensors")
    with open_model(str(tmp_path)) as model:
        path = files.write_model(tmp_path / "made.m", model, kind)
        with open_model(str(path)) as read:
            assert replace(read.spec, name="made", tied=spec.tied) == spec
            for name in read.spec.tensor_names():
                source = "embedding" if name == "head" and spec.tied else name
                used = read.tensor_type(name)
                assert np.array_equal(read.read(name, used), model.read(source, used)), name


@pytest.mark.parametrize("version", [0, 1, 2])
def test_byte_level_ids(tmp_path: Path, demo: Model, version: int) -> None:
    path = tmp_path / "demo.t"
    path.write_bytes(demo_tokenizer(demo, version))
    found = load_gguf_tokenizer(read_vocabulary(path), "demo.t")
    expected = demo.tokenizer()
    assert (found.bos_id, found.eos_ids) == (expected.bos_id, expected.eos_ids)
    assert found.control_ids == expected.control_ids
    assert found.chat_template == (None if version == 0 else "{{ bos_token }}")
    for text in (*TEXTS, "<|bos|>a<|eos|>"):
        assert found.encode(text) == expected.encode(text)
        assert found.encode_pieces([text]) == expected.encode_pieces([text])
        assert found.decode(expected.encode(text)) == expected.decode(expected.encode(text))


@pytest.mark.parametrize("style", ["mark as space", "named bytes", "from tokenizer.json"])
def test_sentencepiece_ids(tmp_path: Path, testdata: Path, style: str) -> None:
    """Llama 2's vocabulary, as each of dllama's converters writes it."""
    source = testdata / "tokenizers" / "llama2" / "tokenizer.model"
    expected = load_tokenizer(source)
    inner = sentencepiece.SentencePieceProcessor(model_file=str(source))
    ids = range(expected.vocab_size)
    scores = [inner.get_score(id) for id in ids]
    tokens = files.piece_tokens(expected)
    if style == "named bytes":
        tokens = [expected.token_text(id).replace("\u2581", " ").encode() for id in ids]
    elif style == "from tokenizer.json":
        # It maps characters of GPT-2's alphabet to bytes, also where they are none.
        tokens = [
            b"".join(
                piece_bytes(character) if character != "\u2581" else character.encode()
                for character in expected.token_text(id)
            )
            for id in ids
        ]
        scores = [-float(id) for id in ids]
    path = tmp_path / "llama2.t"
    path.write_bytes(files.tokenizer_bytes(tokens, scores, 1, [2]))
    found = load_gguf_tokenizer(read_vocabulary(path), "llama2.t")
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "llama-bpe"])
def test_merges_of_published_vocabularies(testdata: Path, name: str) -> None:
    """The merges that GGUF files list follow from the order of the tokens."""
    values = read_gguf(testdata / "vocab-vectors" / f"ggml-vocab-{name}.gguf").values
    kinds = values["tokenizer.ggml.token_type"]
    texts = values["tokenizer.ggml.tokens"]
    tokens = [piece_bytes(text) for text, kind in zip(texts, kinds, strict=True) if kind == 1]
    listed = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    merges = all_merges(tokens) if name == "llama-bpe" else merges_of(tokens)
    assert merges == [(piece_bytes(left), piece_bytes(right)) for left, right in listed]


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe"])
def test_published_vocabularies_are_known(tmp_path: Path, testdata: Path, name: str) -> None:
    """A file with all tokens, BOS among the last: rules and control tokens are found."""
    gguf = testdata / "vocab-vectors" / f"ggml-vocab-{name}.gguf"
    values = read_gguf(gguf).values
    expected = load_gguf_tokenizer(values, str(gguf))
    texts, bos = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.bos_token_id"]
    tokens = [piece_bytes(text) for text in texts]
    eos = [values["tokenizer.ggml.eos_token_id"]]
    path = tmp_path / "made.t"
    path.write_bytes(
        files.tokenizer_bytes(
            tokens, [-float(id) for id in range(len(tokens))], bos, eos, add_bos=0
        )
    )
    found = load_gguf_tokenizer(read_vocabulary(path), "made.t")
    for text in (*TEXTS, "<|im_start|>user\n<|eot_id|>"):
        assert found.encode(text, add_special=False) == expected.encode(text, add_special=False)


def test_a_converted_model_keeps_the_tokenizer(tmp_path: Path, demo: Model) -> None:
    source = files.write_model(tmp_path / "demo.m", demo, "f16")
    (tmp_path / "demo.t").write_bytes(demo_tokenizer(demo))
    converted = convert(str(source), tmp_path / "converted", "q8_0")
    with open_model(str(converted)) as read:
        found, expected = read.tokenizer(), demo.tokenizer()
        assert found.eos_ids == expected.eos_ids
        assert found.chat_template == "{{ bos_token }}"
        assert all(found.encode(text) == expected.encode(text) for text in TEXTS)


def test_all_listed_tokens_end_an_answer(tmp_path: Path) -> None:
    tokens = [*(bytes([byte]) for byte in range(256)), b"<|a|>", b"<|b|>", b"<|c|>", b"<think>"]
    path = tmp_path / "ends.t"
    scores = [-float(id) for id in range(260)]
    path.write_bytes(files.tokenizer_bytes(tokens, scores, -1, [256, 257, 258, 65]))
    values = read_vocabulary(path)
    found = load_gguf_tokenizer(values, "ends.t")
    assert found.eos_ids == {256, 257, 258, 65}
    assert (found.bos_id, found.add_bos) == (None, True)
    assert found.encode("<think>") == [259]
    assert found.token_bytes(259) == b"<think>"


def test_llama3_scaling_and_epsilon(tmp_path: Path, tiny: Model) -> None:
    scaling = {"factor": 32, "low": 1, "high": 4, "original": 8192, "rope": 2}
    scaling |= {"epsilon": 6, "theta": 500000}
    path = files.write_model(tmp_path / "a.m", tiny, changes=scaling)
    with open_model(str(path)) as read:
        assert read.spec.norm_epsilon == 1e-6
        frequencies = read.spec.ropes[0].frequencies
        kept, divided = frequencies[0], frequencies[-1]
    assert kept == 1
    assert divided == pytest.approx(500000 ** -(14 / 16) / 32)


@pytest.mark.parametrize("names", [["tiny.t"], ["a.t"], ["dllama_tokenizer_tiny.t", "b.t"]])
def test_the_tokenizer_beside_it(written: Path, names: list[str]) -> None:
    (written.parent / "tiny.t").unlink()
    for name in names:
        (written.parent / name).write_bytes(TOKENIZER if name != "b.t" else b"")
    with open_model(str(written.parent)) as model:  # its directory has no other model
        assert model.tokenizer().vocab_size == len(TOKENS)


def test_several_tokenizers(written: Path) -> None:
    tokenizer = (written.parent / "tiny.t").rename(written.parent / "a.t")
    (written.parent / "b.t").write_bytes(b"")
    with (
        open_model(str(written)) as model,
        pytest.raises(ModelError, match=r"2 tokenizers .* --tokenizer FILE: a.t, b.t"),
    ):
        model.tokenizer()
    with open_model(str(written), tokenizer=str(tokenizer)) as model:
        assert model.tokenizer().bos_id == 1
    tokenizer.unlink()
    (written.parent / "b.t").unlink()
    with (
        open_model(str(written)) as model,
        pytest.raises(ModelError, match="there is no tokenizer"),
    ):
        model.tokenizer()
    with pytest.raises(ModelError, match=r"--tokenizer a\.t is for dllama's"):
        open_model("demo", tokenizer="a.t")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"arch": 0xABCD01}, r"has \d+ bytes, but its header makes it"),
        ({"arch": 0xABCD02}, "of type qwen3_moe with 0 experts"),
        ({"arch": 7}, "architecture 0x7 is not supported"),
        ({"experts": 8}, "of type llama with 8 experts"),
        ({"act": 0}, "activation 0"),
        ({"rope": 1}, "rope type 1"),
        ({"epsilon": 7}, "norm epsilon 7"),
        ({"heads": 0}, "0 heads"),
        ({"heads": -2}, "-2 heads"),
        ({"layers": 1 << 30}, "layers is 1073741824"),
        ({"dim": -32}, "hidden_size is -32"),
        ({"weights": 9}, "weight type 9 is not known"),
        ({"layers": 3}, "the file|bytes, but its header makes it"),
        ({"vocab": 281}, r"has \d+ bytes, but its header makes it \d+ bytes \(f32\)"),
        ({"theta": 0}, "rope_theta is 0"),
        ({"factor": -3}, "factor is -3"),
    ],
)
def test_headers_that_lie(
    tmp_path: Path, tiny: Model, changes: dict[str, Any], problem: str
) -> None:
    path = files.write_model(tmp_path / "lying.m", tiny, changes=changes)
    with pytest.raises(ModelError, match=problem) as refused:
        open_model(str(path))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "truncated"),
        (struct.pack("<i", 0x0A00ABCD), "truncated"),
        (struct.pack("<ii", 0x0A00ABCD, 12), "claims 12 bytes"),
        (struct.pack("<ii", 0x0A00ABCD, 1 << 30), "claims 1073741824 bytes"),
        (struct.pack("<iiii", 0x0A00ABCD, 16, 22, 0), "unknown key 22"),
        (struct.pack("<6i", 0x0A00ABCD, 24, 2, 1, 2, 1), "hidden size twice"),
        (struct.pack("<iiii", 0x0A00ABCD, 16, 13, 0), "does not say its architecture"),
        (struct.pack("<iiii", 0x0A00ABCD, 16, 0, 0), "does not say its weight type"),
        (struct.pack("<10i", 0xABCD01, *range(9)), "Grok-1"),
        (b"abcdefgh", "is not a dllama model"),
    ],
)
def test_damaged_headers(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "damaged.m"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=problem):
        open_model(str(path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the magic needs 4 bytes"),
        (b"\0" * 64, "is not a dllama tokenizer"),
        (
            files.tokenizer_bytes([b"a"], [0.0], version=1, vocab=1 << 30),
            "claims 1073741824 tokens",
        ),
        (files.tokenizer_bytes([b"a"], [0.0], version=2, eos_count=1 << 30), "EOS ids needs"),
        (files.tokenizer_bytes([b"a"], [0.0], template_bytes=1 << 20), "chat template needs"),
        (files.tokenizer_bytes([b"a"], [0.0], pad=3, version=1)[:40], "truncated"),
        (files.tokenizer_bytes([b"a"], [0.0], bos=1), "names token 1"),
        (files.tokenizer_bytes([b"a"], [0.0]) + b"x", "1 bytes follow"),
        (files.tokenizer_bytes([b"a"], [float("nan")]), "score of token 0 is nan"),
        (files.tokenizer_bytes([b"a"], [float("inf")]), "score of token 0 is inf"),
        (files.tokenizer_bytes([b"a" * 2000], [0.0]), "token 0 has 2000 bytes"),
        (files.tokenizer_bytes([b"a"], [0.0], version=2)[:-1], "token 0 needs 1 bytes"),
        (files.tokenizer_bytes([b"ab" * 500] * 70, [0.0] * 70), "the limit is 67108864"),
    ],
)
def test_damaged_tokenizers(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "damaged.t"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=problem):
        read_vocabulary(path)


def _damaged(data: st.DataObject, content: bytes, limit: int) -> bytes:
    """Some bytes of the first `limit` changed, and perhaps the end cut off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, limit - 4))
        edges = st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
        value = data.draw(edges | st.integers(0, 0xFFFFFFFF))
        changed[place : place + 4] = value.to_bytes(4, "little")
    return bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))])


def _use(source: Path) -> None:
    """Open a model and read all of it, in bounded memory, or be refused in words."""
    tracemalloc.start()
    try:
        with open_model(str(source)) as model:
            model.tokenizer().encode("a b")
            for name in model.spec.tensor_names():
                model.read(name, model.tensor_type(name))
    except ModelError as error:
        assert str(source.parent) in str(error) or "tensor" in str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 32 << 20


@settings(max_examples=100)
@given(data=st.data())
def test_mutated_models(
    tmp_path_factory: pytest.TempPathFactory, tiny: Model, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("mutated")
    former = data.draw(st.booleans())
    path = files.write_model(
        directory / "a.m", tiny, data.draw(st.sampled_from(["f32", "q4_0"])), former
    )
    content = path.read_bytes()
    path.write_bytes(_damaged(data, content, data.draw(st.sampled_from([40, 150, len(content)]))))
    (directory / "a.t").write_bytes(TOKENIZER)
    _use(path)


@settings(max_examples=150)
@given(data=st.data())
def test_mutated_tokenizers(
    tmp_path_factory: pytest.TempPathFactory, tiny: Model, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("mutated")
    bare = [bytes([byte]) for byte in range(256)] + [b"ab", b"abab", b"<|x|>"]
    made = files.tokenizer_bytes(bare, [-float(id) for id in range(259)], 258, [258], "{{ a }}")
    content = data.draw(st.sampled_from([TOKENIZER, made]))
    limit = data.draw(st.sampled_from([64, 200, len(content)]))
    (directory / "a.t").write_bytes(_damaged(data, content, limit))
    _use(files.write_model(directory / "a.m", tiny))


@given(
    words=st.lists(st.text("abc", min_size=1, max_size=6).map(str.encode), min_size=1, max_size=40),
    text=st.text("abc ", max_size=30),
)
def test_merges_rebuild_a_trained_vocabulary(words: list[bytes], text: str) -> None:
    """Tokens of a BPE that a library trains: merging by what is found gives its ids."""
    trained = library.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([word.decode() for word in words], trainer)
    ids = trained.get_vocab()
    names = sorted(ids, key=ids.__getitem__)
    state = json.loads(trained.to_str())
    listed = [tuple(merge) for merge in state["model"]["merges"]]
    found = merges_of([piece_bytes(name) for name in names])
    assert len(found) == len({left + right for left, right in listed})
    state["model"]["merges"] = [
        ["".join(BYTE_TO_CHARACTER[byte] for byte in part) for part in merge] for merge in found
    ]
    rebuilt = library.Tokenizer.from_str(json.dumps(state))
    assert rebuilt.encode(text).ids == trained.encode(text).ids
