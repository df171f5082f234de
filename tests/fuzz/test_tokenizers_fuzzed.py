"""Tokenizer files and chat templates, damaged: each works or is refused with a ModelError."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from converter_builders import gguf_bytes, spm_metadata
from fuzzing import bounded, changed, damaged, fuzzed, paths
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from hearth.converter import ModelError
from hearth.converter.chat import render
from hearth.converter.tokenizers import load_tokenizer
from hearth.converter.tokenizers.sentencepiece import build_model

TEXTS = ["", "the ab", " a  b\n", "é <s> </s>", "\x00\x7f", "漢字 🙂", "<0x41><|end|>aa" * 20]


def use(path: Path) -> bool:
    """Loads a tokenizer, to ids and back; False when it is refused in words."""
    with bounded():
        try:
            tokenizer = load_tokenizer(path)
        except ModelError as error:
            assert str(error).strip()
            assert len(str(error)) < 4000
            return False
        for text in TEXTS:
            for special in (False, True):
                try:
                    ids = tokenizer.encode(text, add_special=False, parse_special=special)
                except ModelError:
                    continue
                assert all(0 <= id < tokenizer.vocab_size for id in ids)
                stream = tokenizer.stream()
                pieces = [*(stream.push(id) for id in ids), stream.flush()]
                assert "".join(pieces) == tokenizer.decode(ids)
        for id in (-1, 0, tokenizer.vocab_size - 1, tokenizer.vocab_size, 1 << 40):
            tokenizer.token_bytes(id)
            tokenizer.token_text(id)
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a test's one file."""
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    """Replace the folder's contents by these files."""

    def put(**files: bytes) -> Path:
        for path in folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        return folder / next(iter(files)).replace("__", ".")

    return put


def byte_level() -> dict[str, Any]:
    """A tokenizer.json of the GPT-2 family."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "ab"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "b")]
    inner = Library(models.BPE({piece: id for id, piece in enumerate(pieces)}, merges))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end|>", special=True)])
    return dict(json.loads(inner.to_str()))


def space_marks() -> dict[str, Any]:
    """A tokenizer.json of the SentencePiece family."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "b", "t", "h", "e", "th", "the", "▁the", "ab"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "b")]
    model = models.BPE(
        {piece: id for id, piece in enumerate(pieces)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    inner = Library(model)
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens([AddedToken(name, special=True) for name in pieces[:3]])
    return dict(json.loads(inner.to_str()))


JSON_FILES = [byte_level(), space_marks()]
JSON_PLACES = [paths(file) for file in JSON_FILES]
# Most of a tokenizer.json is its vocabulary: the rest is to be met too.
JSON_RARE = [[path for path in places if "vocab" not in path] for places in JSON_PLACES]


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@fuzzed(8, 30)
@given(data=st.data())
def test_tokenizer_json(write: Callable[..., Path], data: st.DataObject) -> None:
    which = data.draw(st.integers(0, 1))
    places = data.draw(st.sampled_from([JSON_PLACES, JSON_RARE, JSON_RARE]))[which]
    content = encoded(changed(data.draw, JSON_FILES[which], places))
    if data.draw(st.integers(0, 7)) == 0:
        content = damaged(data.draw, content)
    use(write(tokenizer__json=content))


def sentencepiece_model() -> bytes:
    values = spm_metadata(280)
    pieces, scores, types = (
        values[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")
    )
    return build_model(pieces, scores, types, True, False, 1, 2)


MODEL = sentencepiece_model()


@fuzzed(6, 30)
@given(data=st.data())
def test_sentencepiece_models(write: Callable[..., Path], data: st.DataObject) -> None:
    part = data.draw(st.sampled_from([MODEL, MODEL[-120:], MODEL[:200] + MODEL[-120:]]))
    use(write(tokenizer__model=damaged(data.draw, part)))


RANKS = b"".join(
    base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)
) + b"".join(
    base64.b64encode(bytes([byte % 256, byte // 256, 65])) + b" %d\n" % byte
    for byte in range(256, 50256)
)


@fuzzed(0.5, 5)
@given(data=st.data())
def test_ranks(write: Callable[..., Path], data: st.DataObject) -> None:
    content = data.draw(st.sampled_from([RANKS, RANKS[:3000]]))
    use(write(x__tiktoken=damaged(data.draw, content, 4000)))


def tekken_file() -> dict[str, Any]:
    """A tekken.json of 256 bytes, two pairs and four control tokens."""
    pieces = [*(bytes([byte]) for byte in range(256)), b"th", b"the"]
    return {
        "config": {
            "pattern": r"[^\s]+|\s+",
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + 4,
            "default_num_special_tokens": 4,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate(pieces)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": name, "is_control": True}
            for rank, name in enumerate(("<unk>", "<s>", "</s>", "[INST]"))
        ],
    }


TEKKEN = tekken_file()
TEKKEN_PLACES = paths(TEKKEN)
TEKKEN_RARE = [path for path in TEKKEN_PLACES if path[0] != "vocab"]


def test_the_undamaged_tekken_file_is_read(write: Callable[..., Path]) -> None:
    assert use(write(tekken__json=encoded(TEKKEN)))


@fuzzed(3, 20)
@given(data=st.data())
def test_tekken(write: Callable[..., Path], data: st.DataObject) -> None:
    places = data.draw(st.sampled_from([TEKKEN_PLACES, TEKKEN_RARE, TEKKEN_RARE]))
    content = encoded(changed(data.draw, TEKKEN, places))
    if data.draw(st.integers(0, 7)) == 0:
        content = damaged(data.draw, content)
    use(write(tekken__json=content))


PAIRS = {chr(code): code - 33 for code in range(33, 127)} | {"ab": 94, "<|endoftext|>": 95}


@fuzzed(3, 15)
@given(data=st.data())
def test_vocabulary_and_merges(write: Callable[..., Path], data: st.DataObject) -> None:
    vocabulary, merges = encoded(PAIRS), b"#version: 0.2\na b\n"
    if data.draw(st.booleans()):
        vocabulary = encoded(changed(data.draw, PAIRS, paths(PAIRS)))
    else:
        merges = damaged(data.draw, merges)
    use(write(vocab__json=vocabulary, merges__txt=merges))


BYTE_PAIRS: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": [*PAIRS],
    "tokenizer.ggml.token_type": [*[1] * 95, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 95,
    "tokenizer.ggml.eos_token_id": 95,
    "tokenizer.ggml.add_bos_token": True,
}


@pytest.mark.parametrize("id", [1 << 22, 16_828_289, (1 << 31) - 1])
def test_an_id_that_would_fill_the_memory_is_refused(write: Callable[..., Path], id: int) -> None:
    """The library keeps lists as long as the highest id: of 8 GiB for the last of these."""
    vocabulary = encoded(PAIRS | {"!": id})
    with pytest.raises(ModelError, match=f"token of id {id}"):
        load_tokenizer(write(vocab__json=vocabulary, merges__txt=b"a b\n"))


NUMBERS = st.sampled_from([0, 1, 2, 94, 95, 96, 279, 280, (1 << 31) - 1, (1 << 32) - 1])
TOKENS = st.sampled_from(["", "a", "<s>", "▁", "\0", "<0x41>", "<0xZZ>", "x" * 300, "é", "a b"])


@fuzzed(6, 30)
@given(data=st.data())
def test_vocabularies_in_gguf(write: Callable[..., Path], data: st.DataObject) -> None:
    values = dict(data.draw(st.sampled_from([spm_metadata(280), BYTE_PAIRS])))
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(values)))
        value = values[key]
        if isinstance(value, list) and value and data.draw(st.integers(0, 3)):
            value = list(value)
            place = data.draw(st.integers(0, len(value) - 1))
            if isinstance(value[0], str):
                value[place] = data.draw(TOKENS | st.sampled_from(value))
            elif isinstance(value[0], float):
                value[place] = data.draw(st.floats(width=32))
            else:
                value[place] = data.draw(NUMBERS)
            values[key] = value[: data.draw(st.sampled_from([len(value)] * 3 + [1, place + 1]))]
        elif data.draw(st.integers(0, 3)) == 0:
            del values[key]
            if not values:
                break
        else:
            values[key] = data.draw(NUMBERS | TOKENS | st.booleans() | st.just([1]))
    use(write(tokenizer__gguf=gguf_bytes(values, {})))


@pytest.mark.parametrize("text", ["a", " ", "ab", "é", "\n", "!", "<s>", "1"])
def test_long_texts_take_time_in_proportion(
    write: Callable[..., Path], testdata: Path, text: str
) -> None:
    """A quadratic encoder would need minutes for these: the harness ends the test then."""
    files = [
        write(tokenizer__json=encoded(space_marks())),
        testdata / "tokenizers/llama2/tokenizer.model",
        testdata / "tokenizers/gpt2/tokenizer.json",
        testdata / "vocab-vectors/ggml-vocab-llama-spm.gguf",
    ]
    for path in files:
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode(text * ((1 << 17) // len(text)))
        assert len(ids) > 1000


# -- chat templates --------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
FRAGMENTS = [
    "{% for m in messages %}", "{% endfor %}", "{{ m.role }}", "{% if m.content %}", "{% endif %}",
    "{% else %}", "{{ m['content'] | trim }}", "{% set x = messages %}", "{{ x | tojson }}",
    "{% macro f(n) %}", "{% endmacro %}", "{{ f(1) }}", "{{ raise_exception('no') }}",
    "{{ bos_token", "}}", "{% break %}", "{{ range(9) | list }}", "{{ ''.__class__ }}",
    "{{ messages.__init__ }}",
    "{{ messages | map(attribute='role') | join(',') }}", "{{ strftime_now('%Y') }}", "\x00", "é",
    "{% generation %}", "{% endgeneration %}", "{% raw %}", "{%- set ns = namespace(a=1) -%}",
    "{% set ns.a = ns.a + 1 %}", "{{ 1 / 0 }}", "{{ -1 ** 2 }}", "{{ 'a' * 1000 }}", "{{ none.x }}",
    "{% include 'x' %}", "{% call f(1) %}{% endcall %}", "{{ lipsum }}", "{{ cycler('a') }}",
]  # fmt: skip


@fuzzed(7, 40)
@given(parts=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), min_size=1, max_size=8))
def test_chat_templates(parts: list[str]) -> None:
    render("{{ 1 }}", [])  # its process has descriptors
    with bounded():
        try:
            assert isinstance(render("".join(parts), MESSAGES, bos_token="<s>"), str)
        except ModelError as error:
            assert str(error).startswith("the chat template")
