"""Constraints over real vocabularies: each token stands for the bytes that the tokenizer gives."""

import codecs
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from constraints import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers import load_tokenizer
from hearth.converter.tokenizers.base import Tokenizer
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root.engine.structure import grammar
from hearth.root.engine.structure.constraint import Constraint, Kind
from hearth.root.engine.structure.matching import Structures

# SentencePiece with byte tokens, byte-level BPE, tiktoken's ranks, GGUF, characters of one byte.
PATHS = [
    "tokenizers/llama2/tokenizer.model",
    "tokenizers/gpt2/tokenizer.json",
    "tokenizers/gpt2/gpt2.tiktoken",
    "tokenizers/qwen2",
    "tokenizers/llama3/tokenizer.model",
    "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3",
    "vocab-vectors/ggml-vocab-llama-spm.gguf",
    "stories260k/tok512.model",
    "plain",
]
ANY = Constraint(Kind.REGEX, r"(.|\n)*")
# Numbers and strings may go on, or end; documents may end, or be followed by blanks.
RECORDS = Constraint(
    Kind.JSON_SCHEMA,
    json.dumps(
        {
            "type": "object",
            "properties": {
                "a": {"type": "number"},
                "b": {"type": "string"},
                "c": {"enum": [1, "x"]},
            },
        }
    ),
)


@cache
def load(path: Path | None) -> tuple[Tokenizer, Structures]:
    tokenizer = load_tokenizer(path) if path is not None else PlainTokenizer(1000)
    return tokenizer, Structures(tokenizer)


def load_any(testdata: Path, path: str) -> tuple[Tokenizer, Structures]:
    """One of PATHS."""
    return load(None if path == "plain" else testdata / path)


def begins_a_text(data: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(data)
    except UnicodeDecodeError:
        return False
    return bool(data)


@pytest.mark.parametrize("path", PATHS)
def test_every_token_that_begins_a_text_is_allowed_and_no_other(testdata: Path, path: str) -> None:
    tokenizer, structures = load_any(testdata, path)
    mask = flags(structures.matcher(ANY))[: tokenizer.vocab_size]
    controls = {*tokenizer.control_ids.values()} - tokenizer.eos_ids
    expected = np.array(
        [
            id in tokenizer.eos_ids
            or (id not in controls and begins_a_text(tokenizer.token_bytes(id)))
            for id in range(tokenizer.vocab_size)
        ]
    )
    wrong = np.flatnonzero(mask != expected)
    assert not wrong.size, [(int(i), tokenizer.token_bytes(int(i))) for i in wrong[:10]]


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=30))
def test_a_text_is_accepted_token_by_token(testdata: Path, path: str, text: str) -> None:
    tokenizer, structures = load_any(testdata, path)
    try:
        ids = tokenizer.encode_pieces([text])
    except ModelError:
        return  # a vocabulary without the character
    written = b"".join(map(tokenizer.token_bytes, ids)).decode()
    if not written:
        return
    rule = grammar.literal(written, {})
    matcher = structures.matcher(Constraint(Kind.GRAMMAR, f"start: {rule}\n"))
    for token in filter(tokenizer.token_bytes, ids):
        assert matcher.allows(token), tokenizer.token_bytes(token)
        matcher.accept(token)
    assert matcher.length is not None


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_token_alone_is_judged_as_by_the_mask(testdata: Path, path: str, seed: int) -> None:
    tokenizer, structures = load_any(testdata, path)
    size = tokenizer.vocab_size
    random = np.random.default_rng(seed)
    matcher = structures.matcher(RECORDS)
    for _ in range(30):
        mask = flags(matcher)
        assert not mask[size:].any()
        tried = {*random.integers(size, size=20).tolist(), *tokenizer.eos_ids}
        allowed = np.flatnonzero(mask)
        tried.update(random.choice(allowed, min(20, len(allowed))).tolist())
        for token in tried:
            assert matcher.allows(token) == mask[token], (token, tokenizer.token_bytes(token))
        token = int(random.choice(allowed))
        matcher.accept(token)
        if token in tokenizer.eos_ids or matcher.length is not None:
            break
