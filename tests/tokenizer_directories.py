"""Tokenizer directories in many combinations of files and of what they say.

    python tests/tokenizer_directories.py FOLDER    write them all, a folder each

Two small vocabularies, of tests/gguf_variants.py: SentencePiece (tokenizer.model, tokenizer.json)
and byte-level BPE (vocab.json and merges.txt, tokenizer.json). tests/known/make_tokenizers.py asks
transformers for the ids of all; tests/unit/test_tokenizer_directories.py compares.
"""

from __future__ import annotations

import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

from gguf_variants import CONTROL, NORMAL, TEXTS, UNKNOWN, byte_pair, sentence_piece

from hearth.converter.tokenizers.sentencepiece import build_model

Files = dict[str, Any]

CASES = 560
CONVERSATION = [
    {"role": "user", "content": "Hello, world!"},
    {"role": "assistant", "content": " Hi "},
    {"role": "user", "content": "Once upon a time"},
]
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] + '\\n' + m['content'] }}"
    "<|im_end|>{{ eos_token }}{% endfor %}{{ pad_token }}|{{ unk_token }}|{{ image_token }}"
)
_LLAMA = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL))
_ADDED = ("<|im_start|>", "<|im_end|>", "<tool>", "</tool>", "<pad>")
_ABSENT = object()


def texts() -> list[str]:
    """The texts of gguf_variants, and some around control tokens."""
    return [
        *TEXTS,
        "<s> Hello</s> world",
        "Hello <|im_end|>",
        "<|im_start|> system\nBe brief.<|im_end|>\n",
        "a<tool> b </tool>c",
    ]


@cache
def _pieces() -> tuple[list[str], list[float], list[int]]:
    values = sentence_piece(_LLAMA)
    tokens, types = (values[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    # Merging by rank needs a piece for each letter of a piece; the library would do without.
    letters = {token for token in tokens if len(token) == 1}
    kept = [
        (token, kind)
        for token, kind in zip(tokens, types, strict=True)
        if kind != NORMAL or letters.issuperset(token)
    ]
    scores = [float(-place) for place in range(len(kept))]
    return [token for token, _ in kept], scores, [kind for _, kind in kept]


@cache
def _model() -> bytes:
    tokens, scores, types = _pieces()
    return build_model(tokens, scores, types, True, False, bos_id=1, eos_id=2)


def _token(content: str, special: bool = True, **flags: bool) -> Files:
    base = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, "special": special} | base | flags


def _around(bos: bool, eos: bool, ids: dict[str, int]) -> Files | None:
    names = [*(["<s>"] if bos else []), "", *(["</s>"] if eos else [])]
    part = [
        {"SpecialToken": {"id": name, "type_id": 0}}
        if name
        else {"Sequence": {"id": "A", "type_id": 0}}
        for name in names
    ]
    used = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names if name}
    return {"type": "TemplateProcessing", "single": part, "pair": part, "special_tokens": used}


@cache
def _piece_merges() -> tuple[str, ...]:
    tokens, _, types = _pieces()
    ids = {
        token: id for id, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1
    }
    found = []
    for token in ids:
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in splits if pair[0] in ids and pair[1] in ids]
        found += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return tuple(" ".join(pair) for pair in found)


def _pieces_json(legacy: bool, added: list[Files], around: Files | None) -> Files:
    """A tokenizer.json like Llama 2's."""
    tokens, _, _ = _pieces()
    steps: list[Files] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    before = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, **_token(tokens[id])} for id in range(3)] + added,
        "normalizer": {"type": "Sequence", "normalizers": before} if legacy else None,
        "pre_tokenizer": None if legacy else metaspace,
        "post_processor": around,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "vocab": {token: id for id, token in enumerate(tokens)}, "merges": _piece_merges(),
        },
    }  # fmt: skip


@cache
def _bytes() -> tuple[dict[str, int], tuple[str, ...]]:
    values = byte_pair(())
    tokens = values["tokenizer.ggml.tokens"]
    return {token: id for id, token in enumerate(tokens)}, tuple(values["tokenizer.ggml.merges"])


def _bytes_json(added: list[Files], around: Files | None, prefix_space: bool) -> Files:
    """A tokenizer.json like GPT-2's."""
    vocabulary, merges = _bytes()
    level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": True},
        "post_processor": around,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip


def directory(number: int) -> Files:
    """The files of one directory: name to JSON value, bytes or text. The same in every process."""
    chance = random.Random(number)
    pieces = chance.random() < 0.6
    size = len(_pieces()[0]) if pieces else len(_bytes()[0])
    count = chance.choice((0, 0, 2, 5))
    # <s> and </s> are the bytes' own added tokens: that vocabulary has none.
    names = [*_ADDED[:count]] if pieces else ["<|endoftext|>", "<s>", "</s>", *_ADDED[:count]]
    if not pieces and chance.random() < 0.3:
        names = ["<|endoftext|>"]
    flags = [_flags(chance) for _ in names]
    tokens = [
        _token(name, not name.endswith("tool>"), **flag)
        for name, flag in zip(names, flags, strict=True)
    ]
    in_json = [{"id": size + place, **token} for place, token in enumerate(tokens)]
    ids = {"<s>": 1, "</s>": 2} | {name: size + place for place, name in enumerate(names)}
    files: Files = {"config.json": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}}
    kinds = [("json",), ("json",), ("model",), ("model",), ("json", "model")]
    if not pieces:
        kinds = [("json",), ("pair",)]
    kind = chance.choice(kinds)
    bos, eos = chance.random() < 0.6, chance.random() < 0.2
    around = (
        _around(bos and "<s>" in ids, eos and "</s>" in ids, ids) if chance.random() < 0.8 else None
    )
    if "json" in kind:
        some = in_json[: chance.choice((0, len(in_json), len(in_json)))]
        if len(some) < len(in_json):
            around = None if not pieces else around
        made = _pieces_json(chance.random() < 0.6, some, around) if pieces else None
        files["tokenizer.json"] = made or _bytes_json(some, around, chance.random() < 0.2)
    if "model" in kind:
        files["tokenizer.model"] = _model()
    if "pair" in kind:
        vocabulary, merges = _bytes()
        files["vocab.json"] = vocabulary
        files["merges.txt"] = "\n".join(["#version: 0.2", *merges, ""])
    _statements(chance, files, pieces, kind, tokens, ids)
    return files


def _flags(chance: random.Random) -> dict[str, bool]:
    return {name: chance.random() < 0.12 for name in ("lstrip", "rstrip", "single_word")}


def _statements(
    chance: random.Random,
    files: Files,
    pieces: bool,
    kind: tuple[str, ...],
    tokens: list[Files],
    ids: dict[str, int],
) -> None:
    """The files beside the vocabulary."""
    classes: list[object] = ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"]
    if not pieces:
        classes = ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"]
    if "json" not in kind:
        classes = [name for name in classes if name != "PreTrainedTokenizerFast"]
    config: Files = {"tokenizer_class": chance.choice(classes)}
    for key in ("legacy", "add_bos_token", "add_eos_token", "add_prefix_space"):
        often = 0.15 if key == "add_prefix_space" else 0.5
        if chance.random() < often:
            config[key] = chance.random() < (0.3 if key == "add_eos_token" else 0.5)
    known = [name for name in ids if pieces or name != "<unk>"]
    maps: Files = {}
    for place in (config, maps):
        for key in ("bos_token", "eos_token", "unk_token", "pad_token", "image_token"):
            if chance.random() < 0.4:
                name = chance.choice([*known, "<new>"] if key == "image_token" else known)
                place[key] = chance.choice([name, name, _plain(name, place is config)])
        if tokens and chance.random() < 0.3:
            place["additional_special_tokens"] = [token["content"] for token in tokens[-2:]]
    if chance.random() < 0.1:
        config["bos_token"] = None
    if tokens and chance.random() < 0.6:
        config["added_tokens_decoder"] = {str(ids[token["content"]]): token for token in tokens}
    if chance.random() < 0.5:
        files["special_tokens_map.json"] = maps
    if tokens and chance.random() < 0.4:
        files["added_tokens.json"] = {token["content"]: ids[token["content"]] for token in tokens}
    template = chance.choice((None, "string", "list", "file", "both"))
    if template in ("string", "both"):
        config["chat_template"] = _TEMPLATE
    if template == "list":
        named = {"default": _TEMPLATE, "tool_use": "tools"}
        config["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    if template in ("file", "both"):
        files["chat_template.jinja"] = "file:" + _TEMPLATE
    if chance.random() < 0.9:
        files["tokenizer_config.json"] = config
    for name in ("config.json", "generation_config.json"):
        if chance.random() < 0.4:
            end = chance.sample(sorted(ids.values()), chance.choice((1, min(2, len(ids)))))
            files.setdefault(name, {})["eos_token_id"] = end if len(end) > 1 else end[0]


def _plain(name: str, typed: bool) -> Files:
    """A token as an object, as transformers writes it. typed: in tokenizer_config.json."""
    token = _token(name)
    del token["special"]
    return token | ({"__type": "AddedToken"} if typed else {})


def write(folder: Path, number: int) -> Path:
    """Write one directory into `folder`; returns its path."""
    path = folder / f"{number:03}"
    path.mkdir(parents=True)
    for name, content in directory(number).items():
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (path / name).write_text(text, encoding="utf-8")
    return path


def main() -> int:
    """Write all directories and the texts; returns the exit code."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    for number in range(CASES):
        write(folder, number)
    told = {"texts": texts(), "conversation": CONVERSATION}
    (folder / "texts.json").write_text(json.dumps(told))
    print(f"{CASES} directories in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
