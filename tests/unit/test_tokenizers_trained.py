"""Every kind of tokenizer file, on small vocabularies trained here.

The ids to compare with are those of the libraries that trained them, `tokenizers` and
`sentencepiece`, before anything was written to a file: no test data is needed. What a vocabulary
holds does not matter; that each reader splits, merges and decodes like its source does.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import known_answers
import pytest
import sentencepiece
import tokenizers as library
from converter_builders import gguf_bytes
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from hearth.converter import Tokenizer
from hearth.converter.tokenizers import load_tokenizer
from hearth.converter.tokenizers.byte_level import piece_bytes

Encode = Callable[[str], list[int]]

SIZE = 480
END = "<|endoftext|>"
# Ranks have neither a pattern nor a name: GPT-2's are known by their number.
GPT2_RANKS = 50256
TEXTS = [
    *(story["prompt"] + story["text"] for story in known_answers.read_stories()),
    "Straße, naïve café: 12345 and 67.89%!  Two spaces,\ttabs\r\nand lines\n\n\nof them.",
    "Привет, мир. 你好，世界。 नमस्ते दुनिया 🙂👩‍👩‍👧 e\u0301",
    "def f(x):\n    return x['key'] # it's we'll they've\n",
]
# Letters of the texts above, others, and what splitting and merging trip over.
ALPHABET = st.sampled_from([*"aet hnsT.,'\n\t 019", "é", "ß", "Я", "你", "🙂", "\u0301", "<", ">"])
ANY_TEXT = st.text(ALPHABET, max_size=40) | st.text(max_size=20) | st.sampled_from(TEXTS)


@dataclass(frozen=True)
class Trained:
    """A tokenizer as Hearth reads it, and the ids that its source gives a text."""

    tokenizer: Tokenizer
    encode: Encode
    # Texts come back from their ids as they were.
    lossless: bool = True


def byte_level() -> library.Tokenizer:
    """BPE over bytes, split as GPT-2 does, by the library's own pattern."""
    trained = library.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    assert trained.get_vocab_size() == SIZE
    return trained


def ids_of(trained: library.Tokenizer) -> Encode:
    return lambda text: trained.encode(text, add_special_tokens=False).ids


def parts_of(trained: library.Tokenizer) -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids; merges, "left right", in the order they apply."""
    vocabulary = trained.get_vocab()
    merges = json.loads(trained.to_str())["model"]["merges"]
    return sorted(vocabulary, key=vocabulary.__getitem__), [" ".join(pair) for pair in merges]


def tokenizer_json(folder: Path) -> Trained:
    trained = byte_level()
    trained.add_special_tokens([END])
    trained.save(str(folder / "tokenizer.json"))
    return Trained(load_tokenizer(folder), ids_of(trained))


def vocabulary_and_merges(folder: Path) -> Trained:
    trained = byte_level()
    trained.model.save(str(folder))
    return Trained(load_tokenizer(folder / "vocab.json"), ids_of(trained))


def ranks(folder: Path) -> Trained:
    """The trained tokens, then as many more as GPT-2 has: long ones, which no text holds.

    A wrong byte of `piece_bytes` would show: the ids come from another library, by other files.
    """
    trained = byte_level()
    tokens, _ = parts_of(trained)
    pieces = [piece_bytes(token) for token in tokens]
    draw = random.Random(0)
    pieces += [draw.randbytes(24) for _ in range(GPT2_RANKS - len(pieces))]
    lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(pieces))
    (folder / "small.tiktoken").write_text("".join(lines))
    return Trained(load_tokenizer(folder), ids_of(trained))


def gguf_byte_level(folder: Path) -> Trained:
    trained = byte_level()
    tokens, merges = parts_of(trained)
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, END],
        "tokenizer.ggml.token_type": [*[1] * len(tokens), 3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(tokens),
    }
    (folder / "tokenizer.gguf").write_bytes(gguf_bytes(values, {}))
    return Trained(load_tokenizer(folder), ids_of(trained))


def train_sentencepiece(kind: str) -> sentencepiece.SentencePieceProcessor:
    """A model that changes nothing before it splits, and has tokens for single bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain.from_iterable(text.splitlines() for text in TEXTS * 4),
        model_writer=model,
        model_type=kind,
        vocab_size=SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        hard_vocab_limit=False,  # unigram models of so little text are smaller
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_model(folder: Path, kind: str) -> Trained:
    trained = train_sentencepiece(kind)
    (folder / "tokenizer.model").write_bytes(trained.serialized_model_proto())
    return Trained(load_tokenizer(folder), trained.encode)


def gguf_sentencepiece(folder: Path) -> Trained:
    trained = train_sentencepiece("bpe")
    ids = range(trained.vocab_size())
    kinds = [
        (trained.is_unknown, 2),
        (trained.is_control, 3),
        (trained.is_byte, 6),
        (lambda id: True, 1),
    ]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [trained.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": [float(trained.get_score(id)) for id in ids],
        "tokenizer.ggml.token_type": [next(kind for test, kind in kinds if test(id)) for id in ids],
        "tokenizer.ggml.bos_token_id": trained.bos_id(),
        "tokenizer.ggml.eos_token_id": trained.eos_id(),
    }
    (folder / "tokenizer.gguf").write_bytes(gguf_bytes(values, {}))
    return Trained(load_tokenizer(folder), trained.encode)


def spaces_marked(folder: Path) -> Trained:
    """A tokenizer.json like that of Llama 2: BPE over characters, a mark for spaces, bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = library.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE + 100,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        limit_alphabet=60,
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    # The bytes were only to have the first ids: in a text "<0x0A>" is six letters.
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    trained = library.Tokenizer.from_str(json.dumps(state))
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    trained.save(str(folder / "tokenizer.json"))
    return Trained(load_tokenizer(folder), ids_of(trained))


def unigram(folder: Path) -> Trained:
    """A tokenizer.json of the other kind of SentencePiece model."""
    trained = library.Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trained.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, unk_token="<unk>", special_tokens=["<unk>", "<s>"], show_progress=False
    )
    trained.train_from_iterator(TEXTS, trainer)
    trained.save(str(folder / "tokenizer.json"))
    return Trained(load_tokenizer(folder), ids_of(trained), lossless=False)


KINDS: dict[str, Callable[[Path], Trained]] = {
    "tokenizer.json, byte-level BPE": tokenizer_json,
    "tokenizer.json, BPE with marked spaces": spaces_marked,
    "tokenizer.json, unigram": unigram,
    "vocab.json and merges.txt": vocabulary_and_merges,
    "tiktoken ranks": ranks,
    "sentencepiece, BPE": lambda folder: sentencepiece_model(folder, "bpe"),
    "sentencepiece, unigram": lambda folder: sentencepiece_model(folder, "unigram"),
    "GGUF, byte-level BPE": gguf_byte_level,
    "GGUF, sentencepiece": gguf_sentencepiece,
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))


def test_known_texts(trained: Trained) -> None:
    merged = 0
    for text in TEXTS:
        ids = trained.encode(text)
        assert trained.tokenizer.encode(text, add_special=False) == ids
        if trained.lossless:
            assert trained.tokenizer.decode(ids) == text
        merged += len(text.encode()) - len(ids)
    assert merged > 700  # far fewer tokens than bytes: merges were learned, and used


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_any_text(trained: Trained, text: str) -> None:
    # The sources differ in whether they read a name as its control token.
    assume(not any(name in text for name in ("<unk>", "<s>", "</s>", "<0x", END)))
    ids = trained.encode(text)
    assert trained.tokenizer.encode(text, add_special=False, parse_special=False) == ids
    # SentencePiece writes a space as U+2581, so that character itself comes back as a space.
    if trained.lossless and "\u2581" not in text:
        assert trained.tokenizer.decode(ids) == text
