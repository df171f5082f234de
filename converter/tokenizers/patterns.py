"""Split patterns of the byte-level BPE families, applied before merging.

Keys are the names in GGUF files (`tokenizer.ggml.pre`). The patterns are those that the models'
publishers give in tokenizer.json, in the syntax of the `tokenizers` library (Oniguruma).
"""

from dataclasses import dataclass

from hearth.converter.errors import ModelError
from hearth.converter.shown import shown

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"

_ANY_CASE = rf"(?i:{_CONTRACTIONS})"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS = r"\p{N}{1,3}"


def _llama3(
    digits: str, begin: str = f"{_ANY_CASE}|{_WORD}", marks: str = _MARKS, end: str = _SPACES
) -> str:
    """Llama 3's form, which many share: words, digits, other characters, white space."""
    return f"{begin}|{digits}|{marks}|{end}"


LLAMA3 = _llama3(_THREE_DIGITS)
QWEN2 = _llama3(r"\p{N}")
_QWEN35 = _llama3(
    r"\p{N}",
    rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
)
# Joiners of Indic scripts are part of a word.
_K2_HORIZON = _llama3(
    _THREE_DIGITS, rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}" "\u200c\u200d]+"
)
_SEED_CODER = _llama3(r"\p{N}", marks=r" ?[^\s\p{L}\p{N}\r\n]+")
_BAILING = _llama3(
    r"\p{N}",
    rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}",
    end=r"\s*[\r\n]|\s+(?!\S)|\s+",
)
# Runs of white space are cut into powers of two, the longest first.
_JAIS2 = _llama3(
    _THREE_DIGITS,
    end=r"\s*[\r\n]+|"
    + "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s",
)
# A word takes its neighbours with it where single spaces are between them.
_EXAONE_MOE = _llama3(
    r"\p{N}",
    rf"{_ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    r"\s*[\r\n]|\s+(?!\S)|\s+",
)
_UFAKZEKA = _llama3(r"\p{N}", _WORD)

# Words of mixed case are cut before a capital letter: "camelCase" is two.
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(digits: str, ending: str = "", without: str = "", marks: str = r"[\r\n/]*") -> str:
    """GPT-4o's form. without: a class of letters that words do not take."""
    upper, lower = f"[{_UPPER}{without}]", f"[{_LOWER}{without}]"
    return _llama3(
        digits,
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{ending}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{ending}",
        rf" ?[^\s\p{{L}}\p{{N}}]+{marks}",
    )


TEKKEN = _cased(r"\p{N}")
_GPT4O = _cased(_THREE_DIGITS, f"{_ANY_CASE}?")
_KIMI_K2 = r"\p{Han}+|" + _cased(_THREE_DIGITS, f"{_ANY_CASE}?", r"&&[^\p{Han}]", r"[\r\n]*")

# DeepSeek's: a letter or mark behind a punctuation character belongs to it.
_ASCII_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK_WORDS = _ASCII_MARKS + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_CHINESE_JAPANESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK3 = (_THREE_DIGITS, _CHINESE_JAPANESE, rf"{_DEEPSEEK_WORDS}[\r\n]*|{_SPACES}")
# Letters with case, as far as Unicode had them when the model was made.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CHINESE_KOREAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_LINE_ENDS = r"[\r\n]"
_NO_SENTENCE_END = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
# Scripts without spaces between words.
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_CHINESE_JAPANESE}"
)
# Groups of three from the right, as one reads a number: 1|234|567.
_DIGITS_FROM_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"


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


_GPT2 = BytePairRules((GPT2,))
_LLAMA3 = BytePairRules((LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2 = BytePairRules((QWEN2,))
_DIGITS_APART = BytePairRules((r"\p{N}", GPT2))
_DEEPSEEK = BytePairRules(_DEEPSEEK3)
_CASED = BytePairRules((_GPT4O,))
_NUMBERS_FIRST = BytePairRules((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))

RULES = {
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "qwen2": BytePairRules((QWEN2,), nfc=True),
    "qwen35": BytePairRules((_QWEN35,), nfc=True),
    "tekken": BytePairRules((TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": _CASED,
    # Files older than the other names say this.
    "default": BytePairRules((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9]{3}")),
    "falcon": BytePairRules((r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9]{3}")),
    "deepseek-llm": BytePairRules(
        (
            _LINE_ENDS,
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CHINESE_KOREAN,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": BytePairRules(
        (_LINE_ENDS, r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE_KOREAN, r"\p{N}")
    ),
    "deepseek-v3": _DEEPSEEK,
    "starcoder": _DIGITS_APART,
    "stablelm2": _QWEN2,
    "dbrx": BytePairRules((LLAMA3,)),
    "bloom": BytePairRules((_NO_SENTENCE_END,)),
    "viking": BytePairRules((_NO_SENTENCE_END, r"\p{N}")),
    "bailingmoe": BytePairRules((_BAILING,)),
    "seed-coder": BytePairRules((_SEED_CODER,)),
    "superbpe": BytePairRules((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "kimi-k2": BytePairRules((_KIMI_K2,)),
    "tiny_aya": _NUMBERS_FIRST,
    "afmoe": BytePairRules(
        (_DIGITS_FROM_RIGHT, _AFMOE_SCRIPTS, rf"{_DEEPSEEK_WORDS}[\r\n]*|{_SPACES}")
    ),
    "youtu": BytePairRules((_YOUTU_SCRIPTS, _cased(r"\p{N}", f"{_ANY_CASE}?")), ignore_merges=True),
    "spark2_5": BytePairRules(
        (
            _THREE_DIGITS,
            _CHINESE_JAPANESE,
            rf"{_DEEPSEEK_WORDS}|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "k2-horizon": BytePairRules((_K2_HORIZON,)),
    "exaone-moe": BytePairRules((_EXAONE_MOE,)),
    "jais-2": BytePairRules((_JAIS2,)),
    "ufakzeka": BytePairRules((_UFAKZEKA,)),
    "laguna": BytePairRules((r"[^\n]+|\n+", QWEN2)),
    "minicpm5": BytePairRules((_THREE_DIGITS, _llama3(r"\p{N}+")), ignore_merges=True),
    "granite-embed-multi-97m": BytePairRules((_GPT4O,), ignore_merges=True),
    "chameleon": BytePairRules(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        add_bos=True,
    ),
}
# Names for the rules of another name.
_SAME = {
    "gpt-2": (
        "gpt2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe "
        "gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion granite-docling exaone4"
    ),
    "llama-bpe": ("llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    "starcoder": "refact command-r smollm codeshell exaone minerva-7b mellum2",
    "stablelm2": "hunyuan solar-open megrez grok-2 kormo f2llmv2",
    "qwen2": "deepseek-r1-qwen",
    "dbrx": "smaug-bpe glm4 glm5 chatglm-bpe",
    "bloom": "poro-chat gpt3-finnish",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "tiny_aya": "cohere2moe",
    "bailingmoe": "bailingmoe2 llada-moe",
}
_ALIASES = {alias: name for name, aliases in _SAME.items() for alias in aliases.split()}


def names() -> list[str]:
    """All names that rules_for takes."""
    return sorted({*RULES, *_ALIASES})


def rules_for(name: str) -> BytePairRules:
    """The rules of a name. Raises ModelError for an unknown one: a guess would give other ids."""
    rules = RULES.get(_ALIASES.get(name, name))
    if rules is None:
        raise ModelError(
            f"tokenizer.ggml.pre is {shown(name)}, a way to split text that Hearth does not know; "
            f"those it knows: {', '.join(names())}. If it is another name for one of them, "
            "give that by --pre"
        )
    return rules
