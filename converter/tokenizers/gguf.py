"""The tokenizer inside a GGUF file, from the metadata keys `tokenizer.*`."""

import math
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer, library_errors
from hearth.converter.tokenizers.patterns import rules_for
from hearth.converter.tokenizers.piece_kinds import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from hearth.converter.tokenizers.settings import END_NAMES, Settings

_MAX_TOKENS = 1 << 22
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def vocabulary_size(values: dict[str, Any]) -> int | None:
    """Number of tokens in the file; None where it has no tokenizer."""
    tokens = values.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else None


def gguf_bos_id(values: dict[str, Any]) -> int | None:
    return _id(values, "bos_token_id")


def gguf_eos_ids(values: dict[str, Any]) -> frozenset[int]:
    """Ids of the end tokens that the file names, and of control tokens known to end a turn."""
    ids = {id for key in _END_KEYS if (id := _id(values, key)) is not None}
    tokens, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list) and len(types) == len(tokens):
        ids |= {
            id
            for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == CONTROL and token in END_NAMES
        }
    return frozenset(ids)


def load_gguf_tokenizer(values: dict[str, Any], what: str) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata; `what` names the file in errors.

    Raises:
        ModelError: there is none, it is damaged, or of an unsupported kind.
    """
    model = values.get("tokenizer.ggml.model")
    if model is None:
        raise ModelError(f"{what} has no tokenizer in it (tokenizer.ggml.model)")
    if model not in ("llama", "gpt2"):
        raise ModelError(
            f"{what} has a tokenizer of kind {str(model)[:40]!r}; Hearth reads llama "
            "(SentencePiece) and gpt2 (byte-level BPE)"
        )
    with library_errors(f"{what} has a damaged tokenizer"):
        tokens = _list(values, "tokens", str)
        if not 1 <= len(tokens) <= _MAX_TOKENS:
            raise ModelError(f"{len(tokens)} tokens; there must be 1 to {_MAX_TOKENS}")
        types = _list(values, "token_type", int, [NORMAL] * len(tokens))
        _same_length("token_type", types, tokens)
        build = _sentencepiece if model == "llama" else _byte_pair
        return build(values, tokens, types, what)


def load_tokenizer_gguf(path: Path) -> Tokenizer:
    """The tokenizer of any GGUF file, one with tensors or without."""
    from hearth.converter.readers.gguf import read_gguf  # the readers are above this package

    return load_gguf_tokenizer(read_gguf(path).values, str(path))


def _settings(values: dict[str, Any], add_bos: bool) -> Settings:
    stated = values.get("tokenizer.ggml.add_bos_token")
    template = values.get("tokenizer.chat_template")
    return Settings(
        bos_id=gguf_bos_id(values),
        eos_ids=gguf_eos_ids(values),
        add_bos=stated if isinstance(stated, bool) else add_bos,
        chat_template=template if isinstance(template, str) else None,
    )


def _sentencepiece(
    values: dict[str, Any], tokens: list[str], types: list[int], what: str
) -> Tokenizer:
    from hearth.converter.tokenizers.sentencepiece import SentencePieceTokenizer, build_model

    scores = [float(score) for score in _list(values, "scores", (int, float))]
    _same_length("scores", scores, tokens)
    if not all(math.isfinite(score) for score in scores):
        raise ModelError("a score is not a finite number")
    bos_id, eos_id = gguf_bos_id(values), _id(values, "eos_token_id")
    types = list(types)
    if UNKNOWN not in types:
        unknown = _id(values, "unknown_token_id") or 0
        if unknown >= len(tokens):
            raise ModelError(f"unknown_token_id is {unknown}, of {len(tokens)} tokens")
        types[unknown] = UNKNOWN
    model = build_model(
        tokens,
        scores,
        types,
        add_dummy_prefix=values.get("tokenizer.ggml.add_space_prefix", True) is not False,
        remove_extra_whitespaces=values.get("tokenizer.ggml.remove_extra_whitespaces") is True,
        bos_id=1 if bos_id is None else bos_id,
        eos_id=2 if eos_id is None else eos_id,
    )
    return SentencePieceTokenizer(model, _settings(values, add_bos=True), what)


def _byte_pair(values: dict[str, Any], tokens: list[str], types: list[int], what: str) -> Tokenizer:
    from hearth.converter.tokenizers.huggingface import byte_pair_tokenizer

    pre = values.get("tokenizer.ggml.pre", "default")
    rules = rules_for(str(pre)[:80])
    vocabulary = {token: id for id, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError(f"{len(tokens) - len(vocabulary)} tokens occur twice")
    merges = []
    for merge in _list(values, "merges", str):
        left, found, right = merge.partition(" ")
        if not found or not left or not right:
            raise ModelError(f"the merge {merge[:60]!r} is not a pair of tokens")
        merges.append((left, right))
    added = [
        (id, token, kind == CONTROL)
        for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    settings = _settings(values, rules.add_bos)
    return byte_pair_tokenizer(vocabulary, merges, rules, added, settings, what)


def _id(values: dict[str, Any], key: str) -> int | None:
    value = values.get(f"tokenizer.ggml.{key}")
    # Writers without such a token store the largest number.
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
    return value if usable else None


def _list(
    values: dict[str, Any],
    key: str,
    kind: type | tuple[type, ...],
    default: list[Any] | None = None,
) -> list[Any]:
    value = values.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ModelError(f"tokenizer.ggml.{key} is missing, or of the wrong type")
    return value


def _same_length(key: str, values: list[Any], tokens: list[str]) -> None:
    if len(values) != len(tokens):
        raise ModelError(f"tokenizer.ggml.{key} has {len(values)} items for {len(tokens)} tokens")
