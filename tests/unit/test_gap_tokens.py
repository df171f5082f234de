"""Tokens for the parts of a text with a gap, where a GGUF file names them by id."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from gguf_variants import CONTROL, EXTRAS, NORMAL, Values, byte_pair, piece_pairs, sentence_piece

from hearth.converter.tokenizers.gaps import GapTokens, gap_tokens
from hearth.converter.tokenizers.gguf import load_gguf_tokenizer
from hearth.converter.tokenizers.sandbox import facts
from hearth.root.api.infill import Infill, infill_ids

PARTS = ("<vor>", "<nach>", "<mitte>", "<datei>")
# Names of llama.cpp's own list, which an id that the file states comes before.
NAMES = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
NEW = ("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "fim_sep_token_id")
OLD = ("prefix_token_id", "suffix_token_id", "middle_token_id")
Maker = Callable[..., Values]


def made(maker: Maker, keys: tuple[str, ...], kind: int = CONTROL) -> tuple[Values, list[int]]:
    """A vocabulary with PARTS and NAMES whose file has these keys; the ids of PARTS."""
    extras = (*EXTRAS, *((name, kind) for name in PARTS), *((name, CONTROL) for name in NAMES))
    tokens = maker(extras)["tokenizer.ggml.tokens"]
    ids = [tokens.index(name) for name in PARTS]
    return maker(extras, **dict(zip(keys, ids, strict=False))), ids


@pytest.mark.parametrize("kind", [CONTROL, NORMAL])
@pytest.mark.parametrize("maker", [byte_pair, sentence_piece, piece_pairs])
def test_ids_of_the_file(maker: Maker, kind: int) -> None:
    values, (before, after, middle, file) = made(maker, NEW, kind)
    tokenizer = load_gguf_tokenizer(values, "test")
    assert gap_tokens(tokenizer) == GapTokens(before, after, middle, file)
    assert facts(tokenizer)["gap_ids"] == tokenizer.gap_ids
    ids = infill_ids(tokenizer, Infill("key", "return"))
    start = [tokenizer.bos_id] if tokenizer.add_bos else []
    assert ids[: len(start) + 1] == (*start, before)
    assert ids[-1] == middle
    assert tokenizer.decode(ids[len(start) + 1 : ids.index(after)]).strip() == "key"
    assert tokenizer.decode(ids[ids.index(after) + 1 : -1]).strip() == "return"
    # They are control tokens: no text makes one.
    assert before not in tokenizer.encode_pieces([PARTS[0]])


@pytest.mark.parametrize("maker", [byte_pair, sentence_piece])
def test_keys_of_older_files(maker: Maker) -> None:
    values, (before, after, middle, _) = made(maker, OLD)
    tokenizer = load_gguf_tokenizer(values, "test")
    assert gap_tokens(tokenizer) == GapTokens(before, after, middle, None)


def test_names_where_the_file_has_no_ids() -> None:
    values, _ = made(byte_pair, ())
    tokens = values["tokenizer.ggml.tokens"]
    found = gap_tokens(load_gguf_tokenizer(values, "test"))
    before, after, middle = (tokens.index(name) for name in NAMES)
    assert found == GapTokens(before, after, middle, None)
    beyond = values | {"tokenizer.ggml.fim_pre_token_id": len(tokens)}
    assert gap_tokens(load_gguf_tokenizer(beyond, "test")) == found
