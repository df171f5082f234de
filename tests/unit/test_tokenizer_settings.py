"""The table of which file decides, one row after the other; and several UNKNOWN pieces."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hearth.converter import ModelError
from hearth.converter.tokenizers import load_tokenizer
from hearth.converter.tokenizers.sentencepiece import SentencePieceTokenizer, build_model
from hearth.converter.tokenizers.settings import AddedToken, Settings, TokenizerFiles, resolve


def resolved(**files: Any) -> Settings:
    return resolve(TokenizerFiles(**files), None, frozenset())


DECODER = {"5": {"content": "<x>", "special": True}, "3": {"content": "<y>", "special": False}}


@pytest.mark.parametrize(
    ("files", "part", "expected"),
    [
        ({"config": {"eos_token": "a"}}, "eos_token", "a"),
        ({"config": {"eos_token": {"content": "a"}}}, "eos_token", "a"),
        ({"config": {"eos_token": "a"}, "special_tokens": {"eos_token": "b"}}, "eos_token", "b"),
        # added_tokens_decoder: tokenizer_config.json alone counts.
        (
            {
                "config": {"eos_token": "a", "added_tokens_decoder": {}},
                "special_tokens": {"eos_token": "b"},
            },
            "eos_token",
            "a",
        ),
        # Defaults of the class, and null against them.
        ({"config": {"tokenizer_class": "LlamaTokenizerFast"}}, "bos_token", "<s>"),
        ({"config": {"tokenizer_class": "LlamaTokenizer", "bos_token": None}}, "bos_token", None),
        ({"config": {"tokenizer_class": "PreTrainedTokenizerFast"}}, "bos_token", None),
        ({"model_config": {"tokenizer_class": "GPT2Tokenizer"}}, "bos_token", "<|endoftext|>"),
    ],
)  # fmt: skip
def test_special_tokens_by_name(files: dict[str, Any], part: str, expected: str | None) -> None:
    settings = resolved(**files)
    assert settings.special_tokens.get(part) == expected
    assert getattr(settings, part) == expected
    assert part in settings.sources or expected is None


def test_templates_see_every_part_and_the_list() -> None:
    settings = resolved(
        config={
            "image_token": "<i>",
            "extra_special_tokens": {"audio_token": "<a>"},
            "additional_special_tokens": ["<1>", {"content": "<2>"}],
            "add_bos_token": True,
        },
        special_tokens={"image_token": "<other>", "pad_token": "<p>"},
    )
    assert settings.special_tokens == {
        "pad_token": "<p>",
        "image_token": "<i>",
        "audio_token": "<a>",
        "additional_special_tokens": ["<1>", "<2>"],
    }
    assert (settings.add_bos, settings.add_eos) == (True, None)


def test_ids_of_the_end_are_collected_and_the_begin_is_the_first() -> None:
    settings = resolved(
        model_config={"eos_token_id": 2, "bos_token_id": 7},
        generation={"eos_token_id": [3, 4], "bos_token_id": 6},
        config={"eos_token": "</s>", "bos_token": "<s>"},
    )
    assert (settings.bos_id, settings.eos_ids) == (6, {2, 3, 4})
    assert settings.special_ids({"</s>": 9, "<s>": 1}) == (1, {2, 3, 4, 9})
    assert settings.special_ids({}) == (6, {2, 3, 4})
    assert Settings().special_ids({"<|im_end|>": 5, "a": 1}) == (None, {5})


def test_added_tokens() -> None:
    decided = resolved(config={"added_tokens_decoder": DECODER}, added_tokens={"<z>": 9})
    assert [(token.id, token.text, token.special) for token in decided.added] == [
        (3, "<y>", False),
        (5, "<x>", True),
    ]
    legacy = resolved(config={"pad_token": "<z>", "eos_token": "<e>"}, added_tokens={"<z>": 9})
    assert legacy.added == (
        AddedToken(9, "<z>", True),
        AddedToken(None, "<e>", True),
    )
    assert resolved(added_tokens={"<z>": 9}).added == (
        AddedToken(9, "<z>", False, normalized=True),
    )


def test_templates_by_name_and_the_file_that_counts() -> None:
    named = {"default": "a", "tool_use": "b"}
    listed = [{"name": name, "template": text} for name, text in named.items()]
    config = {"chat_template": listed}
    settings = resolved(config=config, template_json={"chat_template": "c"})
    assert settings.chat_template == "a"
    assert settings.named_templates == named
    assert resolved(template_json={"chat_template": "c"}).chat_template == "c"
    settings = resolved(config=config, templates={"default": "d"})
    assert (settings.chat_template, settings.named_templates) == ("d", {"default": "d"})
    assert resolved(config={"chat_template": {"default": "e"}}).chat_template == "e"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model_config": {"eos_token_id": "2"}}, "eos_token_id is '2'"),
        ({"generation": {"eos_token_id": [1, True]}}, "eos_token_id is"),
        ({"generation": {"bos_token_id": -1}}, "bos_token_id is -1"),
        ({"added_tokens": {"<x>": "1"}}, "has no usable id"),
        ({"config": {"added_tokens_decoder": {"x": "<x>"}}}, "damaged entry 'x'"),
    ],
)
def test_damaged_statements_are_named(files: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        resolved(**files)


def test_files_of_a_directory_are_read(testdata: Path, tmp_path: Path) -> None:
    shutil.copy(testdata / "tokenizers/llama2/tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 32000, "<|im_end|>": 32001}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2]}')
    templates = tmp_path / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("tools")
    (tmp_path / "chat_template.jinja").write_text("chat")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (32002, 1, {2, 32001})
    assert (tokenizer.template_for(False), tokenizer.template_for(True)) == ("chat", "tools")
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>") == [
        1, 32000, 1404, 13, 2918, 32001,
    ]  # fmt: skip
    assert tokenizer.encode("a<|im_end|>", parse_special=False)[-1] != 32001
    # <|im_start|> is added, but no file calls it special; <|im_end|> is named.
    assert tokenizer.decode([32000, 1404, 32001]) == "<|im_start|> user"


def test_several_unknown_pieces() -> None:
    pieces = ["<unk>", "<s>", "</s>", "<unk2>", "▁", "a", "▁a", "<unk3>"]
    model = build_model(pieces, [0.0] * 8, [2, 3, 3, 2, 1, 1, 1, 2], True, False, 1, 2)
    tokenizer = SentencePieceTokenizer(model, Settings(), "it")
    assert tokenizer.encode("a<unk2>a<unk3>") == [1, 6, 3, 6, 7]
    assert tokenizer.encode("a<unk2>", parse_special=False)[1] != 3
    assert tokenizer.decode([6, 3, 7]) == "a"


def tekken(**changes: Any) -> dict[str, Any]:
    """A tekken.json of the 256 bytes and "ab", behind 30 control tokens; one token too many."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc"]
    config = {"pattern": r"\S+|\s+", "default_vocab_size": 287, "default_num_special_tokens": 30}
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    return {"config": config, "vocab": vocabulary} | changes


def test_tekken(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(tekken()))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (287, 1, {2})
    assert tokenizer.special_tokens["eos_token"] == "</s>"
    # Mistral Nemo's control tokens, where the file lists none.
    assert tokenizer.encode("[INST]abc</s>") == [1, 3, 286, 30 + 99, 2]
    assert tokenizer.token_text(29) == "<SPECIAL_29>"
    literal = tokenizer.encode("[INST]", parse_special=False)
    assert literal == [1, *(30 + byte for byte in b"[INST]")]
    assert tokenizer.decode([1, 286, *literal, 2]) == "ab[INST]"
    named = [{"rank": 0, "token_str": "<unk>", "is_control": True}]
    path.write_text(json.dumps(tekken(special_tokens=named)))
    assert load_tokenizer(tmp_path).token_text(1) == "<SPECIAL_1>"
    for changes, words in (
        ({"vocab": tekken()["vocab"][1:]}, "entry 0 of vocab is damaged"),
        ({"vocab": tekken()["vocab"][:256]}, "do not fit a vocabulary of 256"),
        ({"config": {}}, "default_vocab_size is None"),
        (
            {"special_tokens": [{"rank": 30, "token_str": "x"}]},
            "entry of special_tokens is damaged",
        ),
        ({"special_tokens": [{"rank": 1, "token_str": "<SPECIAL_2>"}]}, "occurs twice"),
    ):
        path.write_text(json.dumps(tekken(**changes)))
        with pytest.raises(ModelError, match=words):
            load_tokenizer(tmp_path)


def test_vocabulary_files_without_a_config(testdata: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(testdata / "tokenizers/qwen2" / name, tmp_path)
    tokenizer, whole = load_tokenizer(tmp_path), load_tokenizer(testdata / "tokenizers/qwen2")
    for text in ("What's 1234 + 56?", "<|im_start|>user\n e\u0301 'tis<|im_end|>"):
        assert tokenizer.encode(text) == whole.encode(text)
    assert whole.eos_ids <= tokenizer.eos_ids
