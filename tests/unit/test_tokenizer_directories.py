"""Tokenizer directories in 560 combinations of files, against transformers 4.57 and 5.x.

The answers of both were made by tests/known/make_tokenizers.py. Where the two differ, Hearth gives
one of theirs, and `versions` says which; what is like neither is listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from known.make_tokenizers import digest
from tokenizer_directories import CASES, CONVERSATION, directory, texts, write

from hearth.converter import Tokenizer
from hearth.converter.conversation import conversation_pieces
from hearth.converter.tokenizers import load_tokenizer

_KNOWN = Path(__file__).parents[1] / "known"
ANSWERS = {
    version: json.loads((_KNOWN / f"tokenizers_{version}.json").read_text())["answers"]
    for version in (4, 5)
}
TEXTS = texts()
# Every seventh case; the parity tests compare all.
SAMPLE = 7


# Cases that are like neither version, and why.
_MIXED = "spaces as in 4.57; tokens that a file names, as image_token, are special as in 5.x"
_BOTH = "a token in additional_special_tokens has no text as in 4.57, one named only in 5.x neither"
DIFFERENT: dict[int, str] = {
    **dict.fromkeys((50, 66, 109, 121, 267, 287, 349, 359, 383, 463), _MIXED),
    **dict.fromkeys((38, 152, 521), _BOTH),
    414: "tokenizer.json says that <unk> is special; with add_prefix_space both leave it out",
}


def rebuilt(files: dict[str, Any]) -> bool:
    """Test for a class that 5.x builds by its own rules: by name or by the model's type."""
    name = files.get("tokenizer_config.json", {}).get("tokenizer_class", "LlamaTokenizer")
    return bool(name.startswith(("LlamaTokenizer", "Qwen2Tokenizer")))


def versions(number: int, what: str) -> Iterator[int]:
    """The versions whose answer is right, with the reason where it is not 5.x alone."""
    files = directory(number)
    yield 5
    if what in ("bare", "decoded") and rebuilt(files):
        # 5.x ignores tokenizer.json's normalizer and pre-tokenizer in these classes; in Llama's it
        # takes `legacy` for false, and leaves out the mark of a start before a space. Here, as in
        # 4.57, the file and SentencePiece decide.
        yield 4
    elif what == "decoded" and "additional_special_tokens" in json.dumps(files, default=repr):
        # A token in that list has no text, whatever its own flag says; 5.x shows it.
        yield 4
    if what == "around" and "tokenizer.json" not in files:
        # 5.x adds no BOS where add_bos_token is absent, against its own documentation.
        yield 4


def check(number: int, folder: Path) -> dict[str, str]:
    """Compare one directory; returns what differs."""
    tokenizer = load_tokenizer(write(folder, number))
    right = {version: ANSWERS[version][f"{number:03}"] for version in ANSWERS}
    bare = [tokenizer.encode(text, add_special=False) for text in TEXTS]
    found: dict[str, Any] = {
        "bare": digest(bare),
        "decoded": digest([tokenizer.decode(ids) for ids in bare]),
        "around": around(tokenizer),
        "chat": chat(tokenizer),
    }
    different = {}
    for what, value in found.items():
        answers = [right[version] for version in versions(number, what)]
        if any("error" in answer for answer in answers):
            continue  # the version that decides does not load it
        allowed = [answer[what] for answer in answers]
        if value not in allowed:
            different[what] = f"{value}, not {allowed}"
    eos = right[5].get("eos")
    if eos is not None and eos not in tokenizer.eos_ids:
        different["eos"] = f"{sorted(tokenizer.eos_ids)} without {eos}"
    return different


def around(tokenizer: Tokenizer) -> list[list[int]]:
    bare, special = (tokenizer.encode(TEXTS[6], add_special=add) for add in (False, True))
    place = special.index(bare[0])
    return [special[:place], special[place + len(bare) :]]


def chat(tokenizer: Tokenizer) -> str | None:
    if tokenizer.chat_template is None:
        return None
    text = conversation_pieces(tokenizer, CONVERSATION)
    assert isinstance(text, str)
    return digest(text)


def test_answers_are_of_these_directories() -> None:
    for answers in ANSWERS.values():
        assert sorted(answers) == [f"{number:03}" for number in range(CASES)]
    assert sum("error" in answer for answer in ANSWERS[5].values()) < 10


@pytest.mark.parametrize("part", range(4))
def test_a_sample_of_directories(part: int, tmp_path: Path) -> None:
    compare(list(range(part * SAMPLE, CASES, 4 * SAMPLE)), tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("part", range(8))
def test_all_directories(part: int, tmp_path: Path) -> None:
    compare(list(range(part, CASES, 8)), tmp_path)


def compare(numbers: list[int], folder: Path) -> None:
    found = {number: different for number in numbers if (different := check(number, folder))}
    unknown = {number: found[number] for number in found if number not in DIFFERENT}
    assert not unknown
    assert found.keys() == {number for number in DIFFERENT if number in numbers}
