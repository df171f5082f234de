"""The tokenizer inside a GGUF file, from the metadata keys `tokenizer.*`, as llama.cpp reads it."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.shown import shown
from hearth.converter.tokenizers.base import Tokenizer, library_errors
from hearth.converter.tokenizers.bounds import check_tokens
from hearth.converter.tokenizers.end_names import COMPLETION_KEYS, COMPLETION_PARTS, ends_by_name
from hearth.converter.tokenizers.patterns import BytePairRules, names, rules_for
from hearth.converter.tokenizers.piece_kinds import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from hearth.converter.tokenizers.settings import Settings

_MAX_TOKENS = 1 << 22
_PREFIX = "tokenizer.ggml."
_TEMPLATES = "tokenizer.chat_template."
PRE_KEY = "tokenizer.ggml.pre"
# Hearth's own key: a list of ids, where more tokens end an answer than GGUF has keys for.
END_IDS_KEY = "tokenizer.hearth.end_ids"
_TEMPLATE_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
# Of a text with a gap: each part's key, and those of files from before it.
_GAP_KEYS = {
    "before": ("fim_pre_token_id", "prefix_token_id"),
    "after": ("fim_suf_token_id", "suffix_token_id"),
    "middle": ("fim_mid_token_id", "middle_token_id"),
    "file": ("fim_sep_token_id",),
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_KINDS = range(1, 7)
# What llama.cpp takes where a SentencePiece vocabulary names no token.
_PIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
# Kinds of vocabularies that GGUF files can have besides the two that Hearth reads.
_OTHER_MODELS = {
    "bert": "WordPiece, of BERT",
    "t5": "Unigram, of T5",
    "rwkv": "RWKV's trie",
    "plamo2": "PLaMo-2's",
    "no_vocab": "none",
    "none": "none",
}
# Vocabularies known by their first tokens: files of the first months have no `pre`. SHA-256 of the
# tokens, each ended by a zero byte.
_KNOWN = {
    128000: {"2ac0a3db1efd64752b53f36827d3bf75": "llama-bpe"},
    151643: {"60a117084c8d00c323d318ca390e52dd": "qwen2"},
    50257: {"970836353b582d0ba0d5c98793475f40": "gpt-2"},
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file after llama.cpp's corrections.

    texts, kinds: by id. bos_id: None where the file has none. eos_ids: all that end an answer, by
    id or by name.
    """

    texts: list[str]
    kinds: list[int]
    bos_id: int | None
    eos_ids: frozenset[int]


def vocabulary_size(values: dict[str, Any]) -> int | None:
    """Number of tokens in the file; None where it has no tokenizer."""
    tokens = values.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else None


def gguf_bos_id(values: dict[str, Any]) -> int | None:
    """The id of BOS, or None."""
    return _id(values, "bos_token_id")


def gguf_eos_ids(values: dict[str, Any]) -> frozenset[int]:
    """Ids of all tokens that end an answer. Empty where the vocabulary is damaged."""
    try:
        return _vocabulary(values).eos_ids
    except ModelError:
        return frozenset()


def load_gguf_tokenizer(values: dict[str, Any], what: str, pre: str | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata; `what` names the file in errors.

    pre: the name of the rules that split a text, instead of the file's own.

    Raises:
        ModelError: there is none, it is damaged, or of an unsupported kind.
    """
    model = values.get("tokenizer.ggml.model")
    if model is None:
        raise ModelError(f"{what} has no tokenizer in it (tokenizer.ggml.model)")
    if not isinstance(model, str) or model not in _BUILDERS:
        kind = _OTHER_MODELS.get(str(model))
        raise ModelError(
            f"{what} has a tokenizer of kind {shown(model)}"
            f"{f' ({kind})' if kind else ''}; Hearth reads llama (SentencePiece), gpt2 "
            "(byte-level BPE) and gemma4 (BPE over pieces)"
        )
    with library_errors(f"{what} has a damaged tokenizer"):
        vocabulary = _vocabulary(values)
        return _BUILDERS[model](values, vocabulary, what, pre)


def load_tokenizer_gguf(path: Path) -> Tokenizer:
    """The tokenizer of any GGUF file, one with tensors or without."""
    from hearth.converter.readers.gguf import read_gguf  # the readers are above this package

    return load_gguf_tokenizer(read_gguf(path).values, str(path))


def _vocabulary(values: dict[str, Any]) -> Vocabulary:
    texts = _list(values, "tokens", str)
    if not 1 <= len(texts) <= _MAX_TOKENS:
        raise ModelError(f"{len(texts)} tokens; there must be 1 to {_MAX_TOKENS}")
    check_tokens(texts, "the vocabulary")
    kinds = _list(values, "token_type", int, [NORMAL] * len(texts))
    _long_enough("token_type", kinds, texts)
    kinds = [kind if kind in _KINDS else NORMAL for kind in kinds[: len(texts)]]
    by_name: dict[str, int] = {}
    for id, text in enumerate(texts):
        by_name.setdefault(text, id)
    given = dict(_ids(values, COMPLETION_KEYS))
    ends = ends_by_name(by_name, given)
    markup = ends.get("</s>")
    if markup is not None and kinds[markup] == NORMAL and not _is_pieces(values):
        del ends["</s>"]  # in byte-level vocabularies it closes HTML's <s>
    controls = {by_name[name] for name in COMPLETION_PARTS if name in by_name}
    for id in controls.union(ends.values(), _gap_ids(values).values()):
        kinds[id] = CONTROL
    stated = {id for _, id in _ids(values, _END_KEYS)} | _end_ids(values, len(texts))
    eos_ids = frozenset(stated | set(ends.values()) | set(given.values()))
    bos_id = _id(values, "bos_token_id")
    if bos_id is not None and kinds[bos_id] == USER_DEFINED:
        kinds[bos_id] = CONTROL  # messages must not be able to make it
    return Vocabulary(texts, kinds, bos_id, eos_ids)


def _end_ids(values: dict[str, Any], count: int) -> set[int]:
    listed = values.get(END_IDS_KEY)
    ids = listed if isinstance(listed, list) else []
    return {id for id in ids if type(id) is int and 0 <= id < count}


def _settings(values: dict[str, Any], vocabulary: Vocabulary, add_bos: bool) -> Settings:
    stated = values.get("tokenizer.ggml.add_bos_token")
    template = values.get("tokenizer.chat_template")
    special_tokens = _special_tokens(values)
    eos_token = special_tokens.get("eos_token")
    return Settings(
        bos_id=vocabulary.bos_id,
        eos_ids=vocabulary.eos_ids,
        add_bos=stated if isinstance(stated, bool) else add_bos,
        chat_template=template if isinstance(template, str) else None,
        special_tokens=special_tokens,
        gap_ids=_gap_ids(values),
        eos_token=eos_token if isinstance(eos_token, str) else None,
        add_eos=values.get("tokenizer.ggml.add_eos_token") is True,
        named_templates={
            key.removeprefix(_TEMPLATES): value
            for key, value in values.items()
            if key.startswith(_TEMPLATES) and isinstance(value, str)
        },
    )


def _gap_ids(values: dict[str, Any]) -> dict[str, int]:
    """The tokens that the file names for the parts of a text with a gap."""
    found = {part: next(iter(_ids(values, keys)), None) for part, keys in _GAP_KEYS.items()}
    return {part: named[1] for part, named in found.items() if named is not None}


def _special_tokens(values: dict[str, Any]) -> dict[str, str | list[str]]:
    """The tokens that the file names, as chat templates see them."""
    tokens = values.get("tokenizer.ggml.tokens", [])
    ids = {name: _id(values, key) for name, key in _TEMPLATE_KEYS.items()}
    return {name: tokens[id] for name, id in ids.items() if id is not None and id < len(tokens)}


def _pieces(
    values: dict[str, Any], vocabulary: Vocabulary, what: str, pre: str | None
) -> Tokenizer:
    from hearth.converter.tokenizers.gguf_pieces import (
        GgufPieceTokenizer,
        Pieces,
        with_byte_kinds,
    )

    if pre is not None:
        raise ModelError(
            f"--pre {pre} is for byte-level BPE vocabularies; this one is SentencePiece's, which "
            "is not split before merging"
        )
    texts = vocabulary.texts
    scores = _list(values, "scores", (int, float), [0.0] * len(texts))
    _long_enough("scores", scores, texts)
    scores = [float(score) for score in scores[: len(texts)]]
    if not all(math.isfinite(score) for score in scores):
        raise ModelError("a score is not a finite number")
    # Phi-3's control tokens take the white space behind them; the file does not say so.
    name = str(values.get("general.name", "")).lower()
    stripped: frozenset[str] = frozenset()
    if "phi-3" in name or "phi3" in name:
        stripped = frozenset(
            text
            for text, kind in zip(texts, vocabulary.kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN)
        ) - {"<unk>", "<s>", "<|endoftext|>"}
    pieces = Pieces(
        texts,
        scores,
        with_byte_kinds(texts, vocabulary.kinds),
        _id(values, "unknown_token_id"),
        values.get("tokenizer.ggml.add_space_prefix", True) is not False,
        stripped,
    )
    return GgufPieceTokenizer(pieces, _settings(values, vocabulary, add_bos=True), what)


def _byte_pair(
    values: dict[str, Any], vocabulary: Vocabulary, what: str, pre: str | None
) -> Tokenizer:
    from hearth.converter.tokenizers.huggingface import byte_pair_tokenizer

    rules = _rules(values, _named(vocabulary), what, pre)
    ids, merges, added = _merged(values, vocabulary)
    settings = _settings(values, vocabulary, rules.add_bos)
    return byte_pair_tokenizer(ids, merges, rules, added, settings, what)


def _piece_pairs(
    values: dict[str, Any], vocabulary: Vocabulary, what: str, pre: str | None
) -> Tokenizer:
    """Gemma 4's. Texts begin with BOS, whatever the file says, as in llama.cpp."""
    from hearth.converter.tokenizers.huggingface import piece_pair_tokenizer

    if pre is not None:
        raise ModelError(f"--pre {pre} is for byte-level BPE vocabularies; this one is of pieces")
    stated = {key: value for key, value in values.items() if key != f"{_PREFIX}add_bos_token"}
    settings = _settings(stated, vocabulary, add_bos=True)
    return piece_pair_tokenizer(*_merged(values, vocabulary), settings, what)


_Added = list[tuple[int, str, bool]]


def _named(vocabulary: Vocabulary) -> list[str]:
    """The tokens by id; those without a text have a name."""
    return [text or f"[EMPTY_{id}]" for id, text in enumerate(vocabulary.texts)]


def _merged(
    values: dict[str, Any], vocabulary: Vocabulary
) -> tuple[dict[str, int], list[tuple[str, str]], _Added]:
    """The ids of a vocabulary with merges, these, and the tokens that are matched first."""
    texts = _named(vocabulary)
    ids = {text: id for id, text in enumerate(texts)}
    if len(ids) != len(texts):
        raise ModelError(f"{len(texts) - len(ids)} tokens occur twice")
    merges = []
    for merge in _list(values, "merges", str):
        left, found, right = merge.partition(" ")
        if not found or not left or not right:
            raise ModelError(f"the merge {merge[:60]!r} is not a pair of tokens")
        merges.append((left, right))
    added = [
        (id, text, kind != USER_DEFINED)
        for id, (text, kind) in enumerate(zip(texts, vocabulary.kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    return ids, merges, added


# By tokenizer.ggml.model.
_BUILDERS = {"llama": _pieces, "gpt2": _byte_pair, "gemma4": _piece_pairs}


def _rules(values: dict[str, Any], texts: list[str], what: str, pre: str | None) -> BytePairRules:
    """The rules that split a text: those asked for, of a known vocabulary, or of the file."""
    stated = values.get(PRE_KEY)
    if pre is not None:
        return rules_for(pre)
    if stated in (None, "", "default"):
        stated = known_rules(texts) or stated
    if not stated:
        raise ModelError(
            f"{what} does not say how its tokenizer splits a text (tokenizer.ggml.pre); another "
            "way than in training gives other tokens. Say it by --pre NAME, as the model's "
            f"publisher does; NAME is one of {', '.join(names())}"
        )
    return rules_for(str(stated)[:80])


def known_rules(texts: list[str]) -> str | None:
    """The rules of a vocabulary that is known by its tokens; None for others."""
    for count, digests in _KNOWN.items():
        if len(texts) >= count:
            found = digests.get(_digest(texts[:count]))
            if found is not None:
                return found
    return None


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("".join(f"{text}\0" for text in texts).encode()).hexdigest()[:32]


def _is_pieces(values: dict[str, Any]) -> bool:
    return values.get("tokenizer.ggml.model") == "llama"


def _id(values: dict[str, Any], key: str) -> int | None:
    """The id that a key names, or its default; None where it is outside the vocabulary.

    Writers without such a token store the largest number.
    """
    count = vocabulary_size(values) or 0
    default = _PIECE_IDS.get(key) if _is_pieces(values) else None
    for value in (values.get(_PREFIX + key), default):
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count:
            return value
    return None


def _ids(values: dict[str, Any], keys: tuple[str, ...]) -> list[tuple[str, int]]:
    """The keys that name a token, each with its id."""
    named = ((key, _id(values, key)) for key in keys)
    return [(key, id) for key, id in named if id is not None]


def _list(
    values: dict[str, Any],
    key: str,
    kind: type | tuple[type, ...],
    default: list[Any] | None = None,
) -> list[Any]:
    value = values.get(_PREFIX + key, default)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ModelError(f"tokenizer.ggml.{key} is missing, or of the wrong type")
    return value


def _long_enough(key: str, values: list[Any], tokens: list[str]) -> None:
    if len(values) < len(tokens):
        raise ModelError(f"tokenizer.ggml.{key} has {len(values)} items for {len(tokens)} tokens")
