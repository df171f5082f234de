"""Tokenizers: known ids through every loader, and streams that never give half a character."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from converter_builders import gguf_bytes, spm_metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.converter import ModelError, Tokenizer
from hearth.converter.tokenizers import load_tokenizer, tokenizer_files
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.converter.tokenizers.sentencepiece import build_model

SEPARATOR = "\n__ggml_vocab_test__\n"

# Every vocabulary, and every loader that can read it.
LOADERS = {
    "llama-spm": [
        "vocab-vectors/ggml-vocab-llama-spm.gguf",
        "tokenizers/llama2",
        "tokenizers/llama2/tokenizer.json",
        "tokenizers/llama2/tokenizer.model",
    ],
    "llama-bpe": [
        "vocab-vectors/ggml-vocab-llama-bpe.gguf",
        "tokenizers/llama3",
        "tokenizers/llama3/tokenizer.model",
    ],
    "gpt-2": [
        "vocab-vectors/ggml-vocab-gpt-2.gguf",
        "tokenizers/gpt2/encoder.json",
        "tokenizers/gpt2/tokenizer.json",
        "tokenizers/gpt2/gpt2.tiktoken",
    ],
    "qwen2": [
        "vocab-vectors/ggml-vocab-qwen2.gguf",
        "tokenizers/qwen2",
        "tokenizers/qwen2/vocab.json",
    ],
}
PAIRS = [(name, path) for name, paths in LOADERS.items() for path in paths]
MISTRAL = [
    "tokenizers/mistral/tokenizer.model.v1",
    "tokenizers/mistral/mistral_instruct_tokenizer_240216.model.v2",
    "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3",
    "stories260k/tok512.model",
]
ALL = [*(path for _, path in PAIRS), *MISTRAL, "plain"]


@cache
def load(path: Path) -> Tokenizer:
    return load_tokenizer(path)


def load_any(testdata: Path, path: str) -> Tokenizer:
    """One of ALL."""
    return PlainTokenizer(1000) if path == "plain" else load(testdata / path)


def vectors(testdata: Path, name: str) -> list[tuple[str, list[int]]]:
    base = testdata / "vocab-vectors"
    texts = (base / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split(SEPARATOR)
    assert texts.pop() == ""  # after the last separator
    lines = (base / f"ggml-vocab-{name}.gguf.out").read_text().splitlines()
    ids = [[int(word) for word in line.split()] for line in lines]
    assert len(texts) == len(ids) == 46
    return list(zip(texts, ids, strict=True))


@pytest.mark.parametrize(("name", "path"), PAIRS, ids=[path for _, path in PAIRS])
def test_known_ids(testdata: Path, name: str, path: str) -> None:
    tokenizer = load(testdata / path)
    compared = 0
    for text, ids in vectors(testdata, name):
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.decode(ids) == text
        if ids:
            begin = [tokenizer.bos_id] if tokenizer.add_bos else []
            assert tokenizer.encode(text) == begin + ids
        compared += 1
    assert compared == 46


@pytest.mark.parametrize(
    ("path", "size", "bos", "eos", "adds"),
    [
        ("vocab-vectors/ggml-vocab-llama-spm.gguf", 32000, 1, {2}, True),
        ("tokenizers/llama2", 32000, 1, {2}, True),
        ("tokenizers/llama2/tokenizer.model", 32000, 1, {2}, True),
        ("vocab-vectors/ggml-vocab-llama-bpe.gguf", 128256, 128000, {128001, 128009}, True),
        ("tokenizers/llama3", 128256, 128000, {128001, 128008, 128009}, True),
        ("vocab-vectors/ggml-vocab-gpt-2.gguf", 50257, 50256, {50256}, False),
        ("tokenizers/gpt2/encoder.json", 50257, None, {50256}, False),
        ("tokenizers/gpt2/gpt2.tiktoken", 50257, None, {50256}, False),
        ("tokenizers/qwen2", 151665, None, {151645}, False),
    ],
)
def test_special_tokens(
    testdata: Path, path: str, size: int, bos: int | None, eos: set[int], adds: bool
) -> None:
    tokenizer = load(testdata / path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (
        size,
        bos,
        eos,
        adds,
    )
    for token in eos:
        assert tokenizer.token_bytes(token) == b""
        assert tokenizer.encode(tokenizer.token_text(token), add_special=False) == [token]
    assert tokenizer.encode("") == ([bos] if adds else [])


@pytest.mark.parametrize("path", ALL[:-1])  # the plain one has no token that ends a text
def test_control_tokens_in_a_text_can_be_taken_as_letters(testdata: Path, path: str) -> None:
    tokenizer = load(testdata / path)
    (token, *_) = sorted(tokenizer.eos_ids)
    text = f"a{tokenizer.token_text(token)}b"
    assert token in tokenizer.encode(text)
    literal = tokenizer.encode(text, parse_special=False)
    assert token not in literal
    assert tokenizer.decode(literal) == text


def reference(text_bytes: bytes) -> str:
    return text_bytes.decode("utf-8", "replace")


@pytest.mark.parametrize("path", ALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_stream_gives_whole_characters_and_the_whole_text(
    testdata: Path, path: str, data: st.DataObject
) -> None:
    tokenizer = load_any(testdata, path)
    text = data.draw(
        st.text(st.characters(codec="utf-8"), max_size=40) | st.just("né 🦙👩‍👩‍👧 日本")
    )
    # Ids of a text, with ids of any kind strewn in: halves of characters, controls, none at all.
    ids = tokenizer.encode(text)
    stray = st.integers(-1, tokenizer.vocab_size + 5)
    for token in data.draw(st.lists(stray, max_size=6)):
        ids.insert(data.draw(st.integers(0, len(ids))), token)
    whole = tokenizer.decode(ids)
    split = data.draw(st.integers(0, len(ids)))
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids] + [stream.flush()]
    assert "".join(pieces) == whole
    joined = b"".join(tokenizer.token_bytes(token) for token in ids)
    if tokenizer.strip_space:
        joined = joined.removeprefix(b" ")
    assert whole == reference(joined)
    # A stream after a prompt goes on where the prompt's text ends, spaces included.
    before = tokenizer.stream()
    prompt = "".join(before.push(token) for token in ids[:split])
    after = tokenizer.stream(ids[:split])
    rest = "".join(after.push(token) for token in ids[split:]) + after.flush()
    assert prompt + rest == whole


# SentencePiece writes a space as U+2581, so that character itself comes back as a space.
TEXT = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\u2581")


@pytest.mark.parametrize("path", ALL)
@settings(max_examples=60, deadline=None)
@given(text=st.text(TEXT, max_size=60))
def test_text_survives_encoding(testdata: Path, path: str, text: str) -> None:
    tokenizer = load_any(testdata, path)
    if "qwen2" in path or "tok512" in path:
        # Qwen2 normalizes to NFC and tok512 joins spaces: once done, a text stays as it is.
        text = tokenizer.decode(tokenizer.encode(text, parse_special=False))
    # The name of a control token is text here: as a token it would have none.
    ids = tokenizer.encode(text, parse_special=False)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.decode(ids) == text


def test_a_character_over_several_tokens_comes_with_its_last(testdata: Path) -> None:
    tokenizer = load(testdata / "vocab-vectors/ggml-vocab-llama-spm.gguf")
    ids = tokenizer.encode("🦙", add_special=False)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids][:-1] == [""] * (len(ids) - 1)
    assert len(ids) >= 4
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.flush() == "�"


def test_the_first_space_belongs_to_the_text_only_after_a_prompt(testdata: Path) -> None:
    tokenizer = load(testdata / "vocab-vectors/ggml-vocab-llama-spm.gguf")
    prompt = tokenizer.encode("Once upon")
    (token,) = tokenizer.encode("a", add_special=False)
    assert tokenizer.stream().push(token) == "a"
    assert tokenizer.stream(prompt).push(token) == " a"


def test_half_a_surrogate_pair_is_no_text(testdata: Path) -> None:
    for path in ALL:
        with pytest.raises(ModelError, match="position 2, half of a surrogate pair"):
            load_any(testdata, path).encode("ab\ud83e")


def test_chat_templates_and_settings_beside_a_tokenizer(testdata: Path, tmp_path: Path) -> None:
    shutil.copy(testdata / "tokenizers/llama2/tokenizer.model", tmp_path)
    shutil.copy(testdata / "tokenizers/tinyllama/tokenizer_config.json", tmp_path)
    (tmp_path / "notes.txt").write_text("not a tokenizer's")
    tokenizer = load_tokenizer(tmp_path, None, frozenset({5}))
    assert "<|assistant|>" in (tokenizer.chat_template or "")
    assert tokenizer.eos_ids == {2, 5}
    assert sorted(name for name, _ in tokenizer_files(tmp_path)) == [
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    (tmp_path / "chat_template.jinja").write_text("newer")
    assert load_tokenizer(tmp_path).chat_template == "newer"
    assert (load(testdata / "tokenizers/qwen2").chat_template or "").startswith("{%- if tools %}")


def small_bpe() -> dict[str, Any]:
    """A byte-level tokenizer.json without merges."""
    from hearth.converter.tokenizers.byte_level import BYTE_TO_CHARACTER

    return {
        "version": "1.0",
        "added_tokens": [
            {"id": 256, "content": "<s>", "special": True, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "vocab": {c: b for b, c in BYTE_TO_CHARACTER.items()},
                  "merges": []},
    }  # fmt: skip


def small_spm() -> bytes:
    """The SentencePiece model of a GGUF vocabulary."""
    values = spm_metadata()
    tokens, scores, types = (
        values[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")
    )
    return build_model(tokens, scores, types, True, False, bos_id=1, eos_id=2)


def write_json(directory: Path, **changes: Any) -> Path:
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(small_bpe() | changes))
    return path


def test_truncation_and_padding_of_a_training_run_are_not_applied(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
               "pad_id": 256, "pad_type_id": 0, "pad_token": "<s>"}  # fmt: skip
    path = write_json(tmp_path, truncation=truncation, padding=padding)
    assert load_tokenizer(path).encode("abcdef") == [*b"abcdef"]


def test_a_decoder_that_hearth_does_not_know_is_named(tmp_path: Path) -> None:
    path = write_json(tmp_path, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})
    with pytest.raises(ModelError, match="'WordPiece', which Hearth does not know"):
        load_tokenizer(path)


def test_gguf_kinds_that_hearth_does_not_know_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.gguf"
    for changes, words in (
        ({"tokenizer.ggml.model": "bert"}, "kind 'bert' .WordPiece, of BERT.; Hearth reads llama"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "new"}, "'new', a way to split"),
        ({"tokenizer.ggml.scores": [0.0]}, "scores has 1 items for 300 tokens"),
        ({"tokenizer.ggml.model": 4}, "kind 4"),
    ):
        path.write_bytes(gguf_bytes(spm_metadata() | changes, {}))
        with pytest.raises(ModelError, match=words):
            load_tokenizer(path)


def test_spm_vocabulary_with_padding_and_repeats(tmp_path: Path) -> None:
    values = spm_metadata(320)
    values["tokenizer.ggml.tokens"][310:] = [""] * 5 + ["ab"] * 5
    path = tmp_path / "tokenizer.gguf"
    path.write_bytes(gguf_bytes(values, {}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 320
    assert tokenizer.encode("ab the é") == [1, 264, 269, 259, 198, 172]
    assert tokenizer.decode([1, 264, 315, 269]) == "ab the"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "", "tokenizer.json"),
        ("tokenizer.json", "[]", "tokenizer.json"),
        ("tokenizer.json", '{"model": 3}', "tokenizer.json"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
         "tokenizer.json"),
        ("tokenizer.model", "garbage", "not a SentencePiece model"),
        ("tokenizer.model", "", "not a SentencePiece model"),
        ("tokenizer.model", "IQ== 0\nIg== 1\n", "lacks a token for 254 of the 256 bytes"),
        ("tokenizer.model", "IQ== 0\nIg== 0\n", "ranks are not 0 to the last"),
        ("tokenizer.model", "IQ== 0\nIQ== 1\n", "line 2: .* occurs twice"),
        ("tokenizer.model", "IQ== 0\nnonsense\n", "line 2: .*nonsense.* is not a base64"),
        ("tokenizer.gguf", "GGUF", "too short"),
        ("nothing", "", "has no tokenizer"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=words):
        load_tokenizer(tmp_path)


def test_an_unknown_number_of_ranks_is_refused(tmp_path: Path) -> None:
    import base64

    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (tmp_path / "x.tiktoken").write_text("\n".join(lines))
    with pytest.raises(ModelError, match=r"256 ranks.*50256 \(gpt2\), 128000 \(llama3\)"):
        load_tokenizer(tmp_path)


def test_damaged_vocabulary_and_merges(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\nab\n")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(ModelError, match=r"merges\.txt, line 2: 'ab' is not a pair"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a c\n")
    with pytest.raises(ModelError):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": "0"}')
    with pytest.raises(ModelError, match="not a map of tokens to ids"):
        load_tokenizer(tmp_path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_mutated_tokenizers_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("mutated")
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer.model", "tokenizer.gguf"]))
    originals: dict[str, Callable[[], bytes]] = {
        "tokenizer.json": lambda: json.dumps(small_bpe()).encode(),
        "tokenizer.model": small_spm,
        "tokenizer.gguf": lambda: gguf_bytes(spm_metadata(), {}),
    }
    content = bytearray(originals[name]())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    (directory / name).write_bytes(content[:cut])
    try:
        tokenizer = load_tokenizer(directory)
        tokenizer.decode(tokenizer.encode("Once upon a time 🦙 <s> 12"))
    except ModelError:
        pass
    finally:
        shutil.rmtree(directory)
