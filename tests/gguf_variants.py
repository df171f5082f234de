"""Vocabularies inside GGUF files in many variants, and texts, for a comparison with llama.cpp.

The vocabularies are made here, from the texts, so that every boundary between two pieces shows: a
text that is not split at all becomes very few tokens. `tests/parity/gguf_ids.py` asks llama.cpp for
the ids of all variants; tests/unit/test_gguf_tokenizers.py compares with what it stored.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Any

from converter_builders import gguf_bytes

from hearth.converter.tokenizers.byte_level import BYTE_TO_CHARACTER
from hearth.converter.tokenizers.patterns import names

Values = dict[str, Any]

# Types of tokens in GGUF files.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

TEXTS = (
    "",
    " ",
    "   ",
    "\n",
    "\t\t\n",
    " \n \n\n  x",
    "Hello, world!",
    " Hello",
    "   three spaces before, two behind  ",
    "Once upon a time there was a hearth.",
    "it's, it'S, WE'LL they've I'D he'd you'RE 'tis 'Twas don't rock'n'roll",
    "HTTPServer camelCase XMLHttpRequest iPhone McDonald eBay UPPER lower Title",
    "0 1 12 123 1234 12345 123456 1234567 12345678 123456789",
    "3.14159, 1,000,000.50 and -42; 2026-11-27 01:40 (10%) $9.99 ½ ² Ⅳ ٣٤٥٦",
    "a1b22c333d4444e55555",
    "x = y**2 + foo[i] - bar->baz; // comment\n\treturn !(a && b) || c;\n",
    "def f(x):\n    if x == 'key':\n        return x['key']\n\n\n    return None\n",
    "<div class=\"a\">text</div> <s>struck</s>",
    "C:\\path\\to\\file.txt and /usr/local/bin/python3 ~/home",
    "user@example.com https://example.org/a?b=c&d=e#frag",
    "Straße, naïve café, ÀÉÎÕÜ àéîõü Œuvre ß",
    "étéÉtÉ aÉbÉc ÉCOLE École",
    "Привет, мир. ПриветМир ПРИВЕТ",
    "Ελληνικά γράμματα ΑΒΓ αβγ",
    "你好，世界。今天是2026年11月27日！",
    "日本語のテキスト、カタカナとひらがな。ｶﾀｶﾅ",
    "한국어 텍스트 ㄱㄴㄷ 가나다",
    "ภาษาไทย ข้อความ ๑๒๓",
    "नमस्ते दुनिया १२३ हिन्दी क्\u200dष श्\u200cर",
    "مرحبا بالعالم، كيف الحال؟ ١٢٣۔",
    "שלום עולם",
    "🙂 👩‍👩‍👧 🇩🇪 👍🏽 ☀️ ♥",
    "e\u0301 a\u0308o\u0308u\u0308 n\u0303 cafe\u0301",
    "\u00a0nbsp\u2003em\u2009thin\u200bzero\u3000wide",
    "line one\r\nline two\r\n\r\nline four\rold",
    "tabs\tand\t\ttabs \t mixed \t\t",
    "«quotes» “curly” ‘single’ —dash– …",
    "!!!???... ---===+++ ### *** $$$ ^^^ ~~~ ``` |||",
    "(parenthesis) [bracket] {brace} <angle>",
    "a_b_c __init__ snake_case_2 kebab-case-3",
    "∑∫√∞≈≠ ← → ± × ÷ € £ ¥ © ® ™",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "<s> a</s><s>b</s>",
    " <|im_end|> spaces around <|im_end|>  ",
    "<tool>call</tool> <tool> <unk><pad>",
    "<|im_start|><|im_end|><|im_start|>",
    "the cat sat on the mat. The dog, too, sat; but the cat's mat was the cat's.",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "\u00b5 \u212a \u017f \u0130 \u01c5 \u1f88 \ufb01",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                  x",
    "mixed 中文 and English 混在 text123文字",
)  # fmt: skip

EXTRAS: tuple[tuple[str, int], ...] = (
    ("<s>", CONTROL),
    ("</s>", CONTROL),
    ("<unk>", UNKNOWN),
    ("<pad>", CONTROL),
    ("<|im_start|>", CONTROL),
    ("<|im_end|>", CONTROL),
    ("<tool>", USER_DEFINED),
    ("</tool>", USER_DEFINED),
)


@cache
def merges(sequences: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, str], ...]:
    """Merges that make each sequence of characters one token, the most frequent pairs first."""
    found: dict[tuple[str, str], None] = {}
    left = [list(sequence) for sequence in sequences if len(sequence) > 1]
    while left:
        counts = Counter(pair for pieces in left for pair in pairwise(pieces))
        # As many pairs at once as share no piece: one at a time would take minutes.
        chosen: set[tuple[str, str]] = set()
        begins: set[str] = set()
        ends: set[str] = set()
        for pair, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:200]:
            if pair[0] not in ends and pair[1] not in begins and pair[0] != pair[1]:
                chosen.add(pair)
                begins.add(pair[0])
                ends.add(pair[1])
                found[pair] = None
        if not chosen:
            pair = counts.most_common(1)[0][0]
            chosen.add(pair)
            found[pair] = None
        left = [joined for pieces in left if len(joined := _join(pieces, chosen)) > 1]
    return tuple(found)


def _plain_texts() -> list[str]:
    """The texts without the names of EXTRAS, which must not be tokens twice."""
    pattern = "|".join(re.escape(name) for name, _ in EXTRAS)
    return [part for text in TEXTS for part in re.split(pattern, text) if part]


def _join(pieces: list[str], pairs: set[tuple[str, str]]) -> list[str]:
    result: list[str] = []
    place = 0
    while place < len(pieces):
        if place + 1 < len(pieces) and (pieces[place], pieces[place + 1]) in pairs:
            result.append(pieces[place] + pieces[place + 1])
            place += 2
        else:
            result.append(pieces[place])
            place += 1
    return result


def byte_pair(extras: tuple[tuple[str, int], ...] = EXTRAS, **changes: Any) -> Values:
    """Metadata of a byte-level BPE vocabulary. changes: keys behind "tokenizer.ggml."."""
    pairs = merges(
        tuple(tuple(BYTE_TO_CHARACTER[byte] for byte in text.encode()) for text in _plain_texts())
    )
    tokens = list(dict.fromkeys([*BYTE_TO_CHARACTER.values(), *map("".join, pairs)]))
    return _values("gpt2", tokens, [NORMAL] * len(tokens), extras) | _keys(
        {"merges": [" ".join(pair) for pair in pairs], "pre": "gpt-2"} | changes
    )


def sentence_piece(extras: tuple[tuple[str, int], ...] = EXTRAS, **changes: Any) -> Values:
    """Metadata of a SentencePiece vocabulary with bytes, and pieces over the border of words."""
    sequences = tuple(tuple(f" {text}".replace(" ", "▁")) for text in _plain_texts())
    pairs = merges(sequences)
    letters = sorted({character for sequence in sequences for character in sequence})
    # Some characters have no piece of their own: they become bytes.
    pieces = [piece for piece in letters if piece not in "€£¥√ßØ한"]
    pieces += [piece for piece in dict.fromkeys(map("".join, pairs)) if len(piece) <= 16]
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    types = [BYTE] * 256 + [NORMAL] * len(pieces)
    values = _values("llama", tokens, types, extras)
    count = len(values["tokenizer.ggml.tokens"])
    return values | _keys({"scores": [float(-place) for place in range(count)]} | changes)


def piece_pairs(extras: tuple[tuple[str, int], ...] = EXTRAS, **changes: Any) -> Values:
    """Metadata of BPE over SentencePiece's characters (Gemma 4), with bytes.

    No merge has a line end and something else: llama.cpp merges lines apart.
    """
    lines = [part for text in _plain_texts() for part in re.findall(r"[^\n]+|\n+", text)]
    sequences = tuple(tuple(line.replace(" ", "▁")) for line in lines)
    pairs = merges(sequences)
    letters = sorted({character for sequence in sequences for character in sequence})
    # Some characters have no piece of their own: they become bytes.
    pieces = [piece for piece in letters if piece not in "€£¥√ßØ한"]
    known = set(pieces)
    kept = []
    for left, right in pairs:
        if left in known and right in known:
            kept.append(f"{left} {right}")
            known.add(left + right)
    pieces += [piece for piece in dict.fromkeys(map("".join, pairs)) if piece in known]
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + list(dict.fromkeys(pieces))
    types = [BYTE] * 256 + [NORMAL] * (len(tokens) - 256)
    return _values("gemma4", tokens, types, extras) | _keys({"merges": kept} | changes)


def _values(
    model: str, tokens: list[str], types: list[int], extras: tuple[tuple[str, int], ...]
) -> Values:
    tokens = [*(name for name, _ in extras), *tokens]
    types = [*(kind for _, kind in extras), *types]
    places = {name: place for place, (name, _) in enumerate(extras)}
    ids = {key: places.get(name) for key, name in (("bos", "<s>"), ("eos", "</s>"))}
    ids["unknown"] = places.get("<unk>")
    return {"general.architecture": "llama", "general.name": "made"} | _keys(
        {"model": model, "tokens": tokens, "token_type": types}
        | {f"{key}_token_id": place for key, place in ids.items()}
    )


def _keys(values: Values) -> Values:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def typed(**kinds: int) -> tuple[tuple[str, int], ...]:
    """EXTRAS with other types for some: im_start, im_end, tool, s, e (</s>), unk, pad."""
    short = {
        "<s>": "s", "</s>": "e", "<unk>": "unk", "<pad>": "pad", "<|im_start|>": "im_start",
        "<|im_end|>": "im_end", "<tool>": "tool", "</tool>": "tool",
    }  # fmt: skip
    return tuple((name, kinds.get(short[name], kind)) for name, kind in EXTRAS)


# Rules of text that is not bytes of the GPT-2 alphabet: other kinds of vocabulary.
OTHER_KINDS = frozenset({"gemma4", "sarvam-moe"})


def variants() -> dict[str, Values]:
    """All variants by name. A value of None leaves the key out."""
    made = {f"pre {name}": byte_pair(pre=name) for name in names() if name not in OTHER_KINDS}
    users = typed(im_start=USER_DEFINED, im_end=USER_DEFINED)
    plain = typed(im_start=NORMAL, im_end=NORMAL)
    for kind, build in (("bpe", byte_pair), ("spm", sentence_piece)):
        changes: dict[str, Values] = {
            "as is": {},
            "no bos": {"add_bos_token": False},
            "bos": {"add_bos_token": True},
            "eos": {"add_eos_token": True},
            "bos and eos": {"add_bos_token": True, "add_eos_token": True},
            "user-defined turns": {"extras": users},
            "normal turns": {"extras": plain},
            "controls user-defined": {"extras": typed(s=USER_DEFINED, e=USER_DEFINED)},
            "three unknown": {"extras": typed(pad=UNKNOWN, tool=UNKNOWN)},
            "unused turns": {"extras": typed(im_start=UNUSED, im_end=UNUSED, tool=UNUSED)},
            "end of text normal": {"extras": typed(e=NORMAL), "eos_token_id": 5},
            "eot": {"eot_token_id": 5},
            "eom": {"eom_token_id": 4},
            "eos beyond": {"eos_token_id": 1 << 30},
            "no ids": {"bos_token_id": None, "eos_token_id": None, "unknown_token_id": None,
                       "add_bos_token": False},
            "other bos": {"bos_token_id": 3, "add_bos_token": True},
            "prefix": {"add_space_prefix": True},
            "no prefix": {"add_space_prefix": False},
            "extra spaces removed": {"remove_extra_whitespaces": True},
        }  # fmt: skip
        made |= {f"{kind} {name}": build(**change) for name, change in changes.items()}
    made["gemma4 as is"] = piece_pairs()
    made["gemma4 no bos"] = piece_pairs(add_bos_token=False)
    made["gemma4 user-defined turns"] = piece_pairs(users)
    made["gemma4 turns"] = piece_pairs((*EXTRAS, ("<turn|>", CONTROL)))
    made["spm no types"] = sentence_piece(token_type=None)
    phi3 = sentence_piece((*EXTRAS, ("<|endoftext|>", CONTROL)))
    made["spm phi-3"] = phi3 | {"general.name": "Phi-3 mini"}
    ends = (
        "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
        "<end_of_utterance>", "<|eom_id|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|call|>",
        "<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<eos>", "[EOS]", "[EOT]", "_<EOT>",
        "<|flush|>", "<turn|>", "[e~[", "<|calls|>",
    )  # fmt: skip
    for name in ends:
        for number in (NORMAL, CONTROL, USER_DEFINED):
            made[f"end {name} {number}"] = sentence_piece((*EXTRAS, (name, number)))
    harmony = tuple((name, CONTROL) for name in ("<|return|>", "<|call|>", "<|end|>"))
    made["end harmony"] = byte_pair((*EXTRAS, *harmony, ("<|channel|>", CONTROL)))
    return {
        name: {key: value for key, value in values.items() if value is not None}
        for name, values in made.items()
    }


def file_of(values: Values) -> bytes:
    """A GGUF file without tensors."""
    return gguf_bytes(values, {})
