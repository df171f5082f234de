"""Tokenizers of all supported formats behind one interface; `load_tokenizer` chooses the format.

Libraries are imported on first use, since each takes a good part of a command's start-up time.
"""

from collections.abc import Iterator
from pathlib import Path

from hearth.converter.errors import ModelError
from hearth.converter.hf_config import read_json
from hearth.converter.shown import shown
from hearth.converter.tokenizers.base import StreamDecoder, Tokenizer
from hearth.converter.tokenizers.files import read_settings, settings_files
from hearth.converter.tokenizers.settings import Settings, TokenizerFiles, resolve

__all__ = ["StreamDecoder", "Tokenizer", "load_pair", "load_tokenizer", "tokenizer_files"]

# In order of preference: the first that a directory holds is used.
_SINGLE_FILES = (
    "tokenizer.gguf",
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "characters.json",
)
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_MAX_BYTES = 64 << 20


def load_tokenizer(
    path: Path, bos_id: int | None = None, eos_ids: frozenset[int] = frozenset()
) -> Tokenizer:
    """Load the tokenizer of a directory or a file.

    path: a directory, or a tokenizer.json, tekken.json, characters.json, .gguf, .model
    (SentencePiece or ranks), .tiktoken, or vocabulary file (vocab.json, encoder.json). bos_id,
    eos_ids: as the model's config names them.

    Raises:
        ModelError: there is none, or it is damaged or of an unsupported kind.
    """
    main = _main_file(path) if path.is_dir() else path
    if not main.is_file():
        raise ModelError(f"there is no tokenizer at {main}")
    if main.suffix == ".gguf":
        from hearth.converter.tokenizers.gguf import load_tokenizer_gguf

        return load_tokenizer_gguf(main)
    settings = read_settings(main.parent, bos_id, eos_ids)
    for vocabulary, merges in _PAIRS:
        if main.name == vocabulary:
            return _load_pair(main, main.with_name(merges), settings)
    if main.name == "characters.json":
        from hearth.converter.tokenizers.characters import load_characters

        return load_characters(main)
    if main.name == "tekken.json":
        from hearth.converter.tokenizers.tekken import load_tekken

        return load_tekken(main, settings)
    if main.suffix == ".json":
        from hearth.converter.tokenizers.huggingface import load_tokenizer_json

        return load_tokenizer_json(main, settings)
    from hearth.converter.tokenizers.ranks import is_ranks, load_ranks

    if is_ranks(main):
        return load_ranks(main, settings)
    from hearth.converter.tokenizers.sentencepiece import load_sentencepiece

    return load_sentencepiece(main, settings)


def tokenizer_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of every file that load_tokenizer reads in the directory.

    Empty where there is none.
    """
    try:
        main = _main_file(directory)
    except ModelError:
        return
    names = [main.name, *(merges for vocabulary, merges in _PAIRS if main.name == vocabulary)]
    for name in (*names, *settings_files(directory)):
        yield name, directory / name


def _main_file(directory: Path) -> Path:
    vocabularies = [name for name, merges in _PAIRS if (directory / merges).is_file()]
    for name in (*_SINGLE_FILES, *vocabularies):
        if (directory / name).is_file():
            return directory / name
    ranks = sorted(directory.glob("*.tiktoken"))
    if len(ranks) == 1:
        return ranks[0]
    raise ModelError(
        f"{directory} has no tokenizer; Hearth looks for {', '.join(_SINGLE_FILES)}, "
        f"{', '.join(' with '.join(pair) for pair in _PAIRS)}, and one .tiktoken file"
    )


def load_pair(
    vocabulary_path: Path, merges_path: Path, eos_ids: frozenset[int] = frozenset()
) -> Tokenizer:
    """Load a vocabulary and its merges, without files beside them. Raises ModelError."""
    return _load_pair(vocabulary_path, merges_path, resolve(TokenizerFiles(), None, eos_ids))


def _load_pair(vocabulary_path: Path, merges_path: Path, settings: Settings) -> Tokenizer:
    from hearth.converter.tokenizers.huggingface import byte_pair_tokenizer
    from hearth.converter.tokenizers.patterns import RULES

    if settings.tokenizer_class not in (None, *_CLASSES):
        raise ModelError(
            f"{vocabulary_path.parent}: tokenizer_class {shown(settings.tokenizer_class)} is not "
            f"known for {vocabulary_path.name}; known: {', '.join(_CLASSES)}. A "
            "tokenizer.json would work"
        )
    raw = read_json(vocabulary_path, _MAX_BYTES)
    is_qwen = len(raw) == _QWEN2_SIZE or (settings.model_type or "").startswith("qwen")
    rules = RULES[_CLASSES.get(settings.tokenizer_class or "", "qwen2" if is_qwen else "gpt-2")]
    if not all(type(id) is int and 0 <= id < 1 << 31 for id in raw.values()):
        raise ModelError(f"{vocabulary_path} is not a map of tokens to ids")
    try:
        size = merges_path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelError(f"{merges_path} has {size} bytes; the limit is {_MAX_BYTES}")
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read {merges_path}: {error}") from error
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, found, right = line.rstrip("\r").partition(" ")
        if not found or not left or not right:
            raise ModelError(f"{merges_path}, line {number}: {line[:60]!r} is not a pair of tokens")
        merges.append((left, right))
    # GPT-2's own vocabulary has it, and no file beside it says so.
    added = [(raw[name], name, True) for name in ("<|endoftext|>",) if name in raw]
    if settings.is_bare and len(raw) == _QWEN2_SIZE:
        added = [(_QWEN2_SIZE + place, name, True) for place, name in enumerate(_QWEN2_ADDED)]
    return byte_pair_tokenizer(raw, merges, rules, added, settings, str(vocabulary_path.parent))


# Qwen2's vocabulary without any file beside it.
_QWEN2_SIZE = 151643
_QWEN2_ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
