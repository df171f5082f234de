"""Vocabularies inside GGUF files: the ids that llama.cpp gives, and files that leave rules out."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    random_tensors,
    spm_metadata,
    tiny_spec,
)
from gguf_variants import (
    CONTROL,
    EXTRAS,
    NORMAL,
    TEXTS,
    USER_DEFINED,
    Values,
    byte_pair,
    file_of,
    sentence_piece,
    variants,
)

from hearth.converter import ModelError, Tokenizer, open_model
from hearth.converter.convert import convert
from hearth.converter.readers.gguf import read_gguf
from hearth.converter.readers.gguf_file import metadata_only
from hearth.converter.tokenizers import load_tokenizer
from hearth.converter.tokenizers.gguf import load_gguf_tokenizer
from hearth.converter.tokenizers.patterns import names, rules_for

# Made by tests/known/make_gguf.py.
_STORED = json.loads((Path(__file__).parents[1] / "known" / "gguf_ids.json").read_text())
VARIANTS = variants()

_CASED = "llama.cpp knows case of ASCII letters only, the published pattern of all"
_MARKS = "llama.cpp leaves combining marks out of words, the published pattern takes them in"
_CLASSES = "llama.cpp's classes of upper and lower case cut a word where the published do not"
_NFC = "the model's own tokenizer makes a text NFC first, llama.cpp does not"
_DIGITS = "llama.cpp knows ASCII digits only, the published pattern of all"
_NO_CONTROLS = (
    "no text makes BOS or EOS unless asked for, also where the file calls them user-defined"
)
_WIDE = "llama.cpp ends a word before any character that is not ASCII"
CAMEL, ACCENTS, CHINESE, DEVANAGARI, COMBINING, NUMBERS, COMPATIBLE = 11, 21, 24, 28, 32, 13, 48
_GPT4O = {ACCENTS: _CASED, DEVANAGARI: _MARKS, COMBINING: _MARKS}
_AYA = {CAMEL: _CLASSES, ACCENTS: _CASED, CHINESE: _WIDE}
# Hearth keeps to the models' own tokenizers where llama.cpp only comes near them: text and reason.
DIFFERENT: dict[str, dict[int, str]] = {
    **{
        f"pre {name}": _GPT4O
        for name in ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tekken")
    },
    "pre granite-embed-multi-97m": {ACCENTS: _CASED},
    "pre kimi-k2": {CAMEL: _CASED, **_GPT4O},
    "pre tiny_aya": _AYA,
    "pre cohere2moe": _AYA,
    "pre youtu": {CAMEL: _CLASSES, ACCENTS: _CASED},
    **{
        f"pre {name}": {COMBINING: _NFC, COMPATIBLE: _NFC}
        for name in ("qwen2", "qwen35", "deepseek-r1-qwen")
    },
    "pre superbpe": {NUMBERS: _DIGITS},
    **{
        f"{kind} controls user-defined": dict.fromkeys((17, 42), _NO_CONTROLS)
        for kind in ("spm", "bpe")
    },
    # </s> closes HTML's <s> in a byte-level vocabulary that does not call it a control token.
    "bpe end of text normal": dict.fromkeys((17, 42), "</s> is text"),
    **{
        f"{kind} controls user-defined": dict.fromkeys((17, 42), "BOS is a control token")
        for kind in ("bpe", "spm")
    },
}
# Ends that only one of the two knows, and why.
DIFFERENT_ENDS = {
    "bpe end of text normal": {1},
    # llama.cpp takes id 11, Falcon's, where a byte-level vocabulary names no end.
    "bpe eos beyond": {11},
    "bpe no ids": {11},
}


@cache
def load(name: str) -> Tokenizer:
    return load_gguf_tokenizer(VARIANTS[name], name)


def stored(name: str, kind: str) -> list[list[int]]:
    lists = _STORED["lists"]
    return [[int(word) for word in lists[at].split()] for at in _STORED["variants"][name][kind]]


@pytest.mark.parametrize("name", _STORED["variants"])
def test_ids_of_llama_cpp(name: str) -> None:
    tokenizer = load(name)
    allowed = DIFFERENT.get(name, {})
    found = set()
    for kind, special in (("special", True), ("literal", False)):
        expected = stored(name, kind)
        assert len(expected) == len(TEXTS) >= 50
        for place, text in enumerate(TEXTS):
            ids = tokenizer.encode(text, add_special=special, parse_special=special)
            if ids != expected[place]:
                assert place in allowed, (kind, text, ids, expected[place])
                found.add(place)
    assert found == set(allowed), "a difference that is listed is none"
    ends = set(_STORED["variants"][name]["ends"])
    assert tokenizer.eos_ids ^ ends == DIFFERENT_ENDS.get(name, set())


def test_all_names_of_rules_were_compared() -> None:
    compared = {name.removeprefix("pre ") for name in _STORED["variants"] if name[:4] == "pre "}
    # Later than the llama.cpp that was asked, or Hearth's own second name.
    assert set(names()) - compared == {"gpt2", "k2-horizon"}
    assert len(_STORED["variants"]) >= 60


def test_rules_newer_than_the_reference() -> None:
    # Joiners and marks are inside the word, as the model's publisher has it.
    (pattern,) = rules_for("k2-horizon").patterns
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str
    assert [piece for piece, _ in split("क्\u200dष 1234 ab's")] == [
        "क्\u200dष", " ", "123", "4", " ab", "'s",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize("name", ["<|im_end|>", "<end_of_turn>", "<|eot_id|>", "[EOT]"])
def test_a_turn_ends_by_name_whatever_the_type(name: str, kind: int) -> None:
    tokenizer = load_gguf_tokenizer(sentence_piece((*EXTRAS[:4], (name, kind))), "made")
    assert tokenizer.eos_ids == {1, 4}
    assert tokenizer.token_bytes(4) == b""
    assert tokenizer.encode(f"a{name}", add_special=False)[-1] == 4
    assert 4 not in tokenizer.encode(f"a{name}", parse_special=False)


def without_pre(**changes: Any) -> Values:
    return {key: value for key, value in byte_pair(**changes).items() if key[-4:] != ".pre"}


def test_a_vocabulary_without_rules_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"made does not say how.*--pre NAME.*llama-bpe.*qwen2"):
        load_gguf_tokenizer(without_pre(), "made")
    with pytest.raises(ModelError, match=r"'new', a way to split text .*qwen2"):
        load_gguf_tokenizer(byte_pair(pre="new"), "made")
    with pytest.raises(ModelError, match=r"'newer'.*--pre"):
        load_gguf_tokenizer(without_pre(), "made", "newer")
    told = load_gguf_tokenizer(without_pre(), "made", "qwen2")
    assert told.encode("1234 a\n") == load("pre qwen2").encode("1234 a\n")
    # What is asked for precedes what the file says.
    other = load_gguf_tokenizer(byte_pair(pre="gpt-2"), "made", "qwen2")
    assert other.encode("1234 a\n") == told.encode("1234 a\n")
    assert other.encode("1234 a\n") != load("pre gpt-2").encode("1234 a\n")
    with pytest.raises(ModelError, match="--pre qwen2 is for byte-level BPE"):
        load_gguf_tokenizer(sentence_piece(), "made", "qwen2")


@pytest.mark.parametrize("name", ["llama-bpe", "gpt-2", "qwen2"])
@pytest.mark.parametrize("stated", [None, "default"])
def test_a_known_vocabulary_needs_no_rules(testdata: Path, name: str, stated: str | None) -> None:
    path = testdata / f"vocab-vectors/ggml-vocab-{name}.gguf"
    values = dict(read_gguf(path).values)
    del values["tokenizer.ggml.pre"]
    if stated is not None:
        values["tokenizer.ggml.pre"] = stated
    tokenizer, own = load_gguf_tokenizer(values, name), load_tokenizer(path)
    for text in ("What is 3333+777?", "We'LL see:\n\n  1 234", *TEXTS):
        assert tokenizer.encode(text) == own.encode(text)
    assert tokenizer.add_bos == own.add_bos


def test_rules_given_for_a_file_go_with_its_conversion(tmp_path: Path) -> None:
    spec = tiny_spec(vocab_size=2000, hidden_size=32, ffn_size=32, heads=2, kv_heads=1)
    values = gguf_metadata(spec) | {
        key: value for key, value in without_pre().items() if key.startswith("tokenizer.")
    }
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(values, gguf_tensors(spec, random_tensors(spec), "f32")))
    with open_model(str(path)) as model, pytest.raises(ModelError, match="--pre NAME"):
        model.tokenizer()
    with open_model(str(path), pre="qwen2") as model:
        ids = model.tokenizer().encode("12345 a's")
    assert ids == load("pre qwen2").encode("12345 a's")
    convert(str(path), tmp_path / "converted", "f16", pre="qwen2")
    with open_model(str(tmp_path / "converted")) as model:
        assert model.tokenizer().encode("12345 a's") == ids
    with pytest.raises(ModelError, match="--pre qwen2 is for GGUF and dllama files"):
        open_model(str(tmp_path / "converted"), pre="qwen2")
    with pytest.raises(ModelError, match="--pre qwen2 is for GGUF and dllama files"):
        open_model("demo", pre="qwen2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "bert"}, r"'bert' \(WordPiece, of BERT\); Hearth reads llama"),
        ({"model": "t5"}, r"'t5' \(Unigram, of T5\)"),
        ({"scores": [0.0]}, "scores has 1 items for 300 tokens"),
        ({"scores": [float("nan")] * 300}, "not a finite number"),
        ({"token_type": [3]}, "token_type has 1 items for 300 tokens"),
        ({"tokens": "a"}, r"tokenizer\.ggml\.tokens is missing"),
    ],
)
def test_damaged_vocabularies_are_named(changes: Values, words: str) -> None:
    keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ModelError, match=words):
        load_gguf_tokenizer(spm_metadata() | keys, "made")


def test_pieces_without_types_or_scores(tmp_path: Path) -> None:
    values = sentence_piece()
    del values["tokenizer.ggml.scores"]
    tokenizer = load_gguf_tokenizer(values, "made")
    ids = tokenizer.encode("the cat é €", parse_special=False)
    assert tokenizer.decode(ids) == "the cat é €"
    path = tmp_path / "tokenizer.gguf"
    path.write_bytes(file_of(values))
    assert load_tokenizer(path).encode("the cat") == tokenizer.encode("the cat")


def test_a_converted_vocabulary_keeps_the_name_that_rules_follow_from(tmp_path: Path) -> None:
    name = "spm phi-3"
    path = tmp_path / "model.gguf"
    path.write_bytes(file_of(VARIANTS[name]))
    kept = metadata_only(read_gguf(path).pairs, lambda key: key != "general.architecture")
    (tmp_path / "tokenizer.gguf").write_bytes(kept)
    text = "<|im_end|>  \n a"
    ids = load_tokenizer(tmp_path).encode(text, add_special=False)
    assert ids == load(name).encode(text, add_special=False)
    assert len(ids) < len(load("spm as is").encode(text, add_special=False))


def test_templates_by_name_and_tokens_for_them() -> None:
    values = sentence_piece(eos_token_id=5, padding_token_id=3) | {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "with tools",
        "tokenizer.chat_templates": ["tool_use"],
    }
    tokenizer = load_gguf_tokenizer(values, "made")
    assert tokenizer.template_for(tools=False) == "plain"
    assert tokenizer.template_for(tools=True) == "with tools"
    # The template sees the token that the file names, not another end of a turn.
    assert dict(tokenizer.special_tokens) == {
        "bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>", "pad_token": "<pad>",
    }  # fmt: skip
