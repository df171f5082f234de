"""Published split patterns of the byte-level BPE families, applied before merging.

Keys are the names in GGUF files (`tokenizer.ggml.pre`).
"""

from dataclasses import dataclass

from hearth.converter.errors import ModelError

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"


def _llama3(digits: str) -> str:
    return (
        rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


LLAMA3 = _llama3(r"\p{N}{1,3}")
QWEN2 = _llama3(r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class BytePairRules:
    """patterns: applied in order; each splits the pieces of the one before.

    ignore_merges: a piece that is a whole token is not built from merges. add_bos: whether
    texts begin with BOS where the file does not decide. nfc: text is normalized to NFC first.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_DIGITS_APART = BytePairRules((r"\p{N}", GPT2))

RULES = {
    "gpt-2": BytePairRules((GPT2,)),
    "llama-bpe": BytePairRules((LLAMA3,), ignore_merges=True, add_bos=True),
    "qwen2": BytePairRules((QWEN2,), nfc=True),
    "tekken": BytePairRules((TEKKEN,), ignore_merges=True),
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
}
_ALIASES = {
    "default": "gpt-2",
    "gpt2": "gpt-2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}


def rules_for(name: str) -> BytePairRules:
    """The pattern of a name. "default", from files older than the names, is GPT-2's.

    Raises ModelError for an unknown name: a guess would give other ids than in training."""
    rules = RULES.get(_ALIASES.get(name, name))
    if rules is None:
        raise ModelError(
            f"tokenizer.ggml.pre is {name!r}, a way to split text that Hearth does not know; those "
            f"it knows: {', '.join(sorted({*RULES, *_ALIASES}))}"
        )
    return rules
