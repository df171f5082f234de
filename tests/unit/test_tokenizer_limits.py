"""Tokenizers and templates from strangers: bounded when they are loaded, and while they run."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    random_tensors,
    spm_metadata,
    tiny_spec,
    write_hf,
)
from converter_builders import hf_config as config_of
from gguf_variants import byte_pair, sentence_piece
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import ByteTokenizer

from hearth.common.errors import HearthError, Reason
from hearth.converter import ModelError, Tokenizer, open_model
from hearth.converter.tokenizers import load_tokenizer, sandbox
from hearth.converter.tokenizers.bounds import check_steps
from hearth.converter.tokenizers.byte_level import BYTE_TO_CHARACTER
from hearth.converter.tokenizers.confined import ConfinedTokenizer, confined
from hearth.root.api.prompt import MAX_BYTES_PER_POSITION, conversation_ids

SPEC = tiny_spec(vocab_size=300)


def tokenizer_json(**changes: Any) -> str:
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False,
                              "trim_offsets": True, "use_regex": True},
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                        "use_regex": True},
            "model": {"type": "BPE", "vocab": {c: b for b, c in BYTE_TO_CHARACTER.items()},
                      "merges": []},
        }
        | changes
    )  # fmt: skip


def sequence(kind: str, key: str, parts: list[Any]) -> dict[str, Any]:
    return {"type": kind, key: parts}


def doubling(times: int, content: str = "aa") -> dict[str, Any]:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return sequence("Sequence", "normalizers", [one] * times)


NOTHING = {"type": "Strip", "strip_left": False, "strip_right": False}
HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": doubling(27)}, "normalizer makes up to .* bytes of one"),
    ({"normalizer": doubling(40)}, "normalizer makes up to"),
    ({"normalizer": doubling(3, "a" * 200)}, "normalizer makes up to"),
    ({"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 5000}},
     "normalizer makes up to"),
    ({"normalizer": {"type": "Prepend", "prepend": "x" * (1 << 20)}}, "adds 1048576"),
    ({"normalizer": sequence("Sequence", "normalizers", [NOTHING] * 70)},
     "more than 64 steps"),
    ({"normalizer": sequence("Sequence", "normalizers", [{"type": "NFKC"}] * 4)},
     "normalizer makes up to"),
    ({"decoder": sequence("Sequence", "decoders", [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 27)},
     "decoder makes up to"),
    ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a" * 20_000},
                        "behavior": "Isolated", "invert": False}}, "pattern of 20000"),
    ({"added_tokens": [{"id": 256, "content": "x" * 100_000, "special": False,
                        "single_word": False, "lstrip": False, "rstrip": False,
                        "normalized": False}]}, "a token of 100000 bytes"),
    ({"post_processor": {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": "!", "type_id": 0}}] * 1000
        + [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"!": {"id": "!", "ids": [33], "tokens": ["!"]}}}},
     "puts 1001 tokens around"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), HOSTILE, ids=[words for _, words in HOSTILE])
def test_a_tokenizer_that_grows_texts_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json(**changes))
    with pytest.raises(ModelError, match=words):
        load_tokenizer(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    deep = '{"type":"Sequence","normalizers":[' * 100_000 + "]}" * 100_000
    path = tmp_path / "tokenizer.json"
    text = tokenizer_json(normalizer="deep")
    path.write_text(text.replace('"normalizer": "deep"', f'"normalizer": {deep}'))
    with pytest.raises(ModelError, match="cannot read"):
        load_tokenizer(path)


def test_published_steps_are_allowed(testdata: Path) -> None:
    """Those of Llama 2, and those of T5 and XLM-R, whose map has replacements of 33 bytes."""
    load_tokenizer(testdata / "tokenizers/llama2/tokenizer.json")
    replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    parts = [{"type": "NFKC"}, {"type": "Prepend", "prepend": "▁"}, replace,
             {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]  # fmt: skip
    check_steps("normalizer", sequence("Sequence", "normalizers", parts), "made")


@given(
    factors=st.lists(
        st.tuples(st.text("ab", min_size=1, max_size=3), st.text("ab", max_size=9)), max_size=8
    ),
    text=st.text("abc", max_size=12),
)
def test_the_bound_holds_what_replacements_make(factors: list[tuple[str, str]], text: str) -> None:
    parts = [
        {"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in factors
    ]
    try:
        check_steps("normalizer", sequence("Sequence", "normalizers", parts), "made")
    except ModelError:
        return
    made = text
    for old, new in factors:
        made = made.replace(old, new)
    assert len(made) <= 1024 * len(text)


@pytest.mark.parametrize("build", [byte_pair, sentence_piece])
def test_a_long_token_of_a_gguf_file_is_refused(build: Any) -> None:
    from hearth.converter.tokenizers.gguf import load_gguf_tokenizer

    values = build()
    values["tokenizer.ggml.tokens"][-1] = "x" * 20_000
    with pytest.raises(ModelError, match="a token of 20000 bytes"):
        load_gguf_tokenizer(values, "made")


# The process with limits.


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    values = gguf_metadata(SPEC) | spm_metadata(SPEC.vocab_size)
    values["tokenizer.ggml.add_eos_token"] = True
    values["tokenizer.chat_template"] = "{{ messages[0]['content'] }}"
    path.write_bytes(gguf_bytes(values, gguf_tensors(SPEC, random_tensors(SPEC), "f32")))
    return path


@pytest.fixture(scope="module")
def tokenizer(model_file: Path) -> Iterator[ConfinedTokenizer]:
    with ConfinedTokenizer(str(model_file)) as made:
        yield made


@pytest.fixture(scope="module")
def own(model_file: Path) -> Iterator[Tokenizer]:
    with open_model(str(model_file)) as model:
        yield model.tokenizer()


def test_a_confined_tokenizer_says_what_the_library_does(
    tokenizer: ConfinedTokenizer, own: Tokenizer
) -> None:
    assert sandbox.facts(tokenizer) == sandbox.facts(own)
    for id in range(-2, own.vocab_size + 2):
        assert tokenizer.token_bytes(id) == own.token_bytes(id)
        assert tokenizer.token_text(id) == own.token_text(id)
    ids = [own.bos_id, *own.encode("the a é", add_special=False), 2]
    assert tokenizer.decode(ids) == own.decode(ids)  # type: ignore[arg-type]


@given(text=st.text(max_size=60), special=st.booleans(), parse=st.booleans())
def test_confined_ids(
    tokenizer: ConfinedTokenizer, own: Tokenizer, text: str, special: bool, parse: bool
) -> None:
    assert tokenizer.encode(text, special, parse) == own.encode(text, special, parse)
    pieces: list[str | int] = ["<s>", 1, text, 2, "a"]
    assert tokenizer.encode_pieces(pieces) == own.encode_pieces(pieces)


def test_threads_share_the_process(tokenizer: ConfinedTokenizer, own: Tokenizer) -> None:
    texts = ["ab the " * count for count in range(1, 40)]
    expected = [own.encode(text) for text in texts]
    results: list[list[list[int]]] = []

    def run() -> None:
        results.append([tokenizer.encode(text) for text in texts])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_an_idle_process_ends_and_the_next_text_starts_another(tmp_path: Path) -> None:
    with ConfinedTokenizer(hostile_model(tmp_path)) as tokenizer:
        first = tokenizer._process
        assert first is not None
        due = tokenizer.rest(3600.0)
        assert due is not None
        assert due > time.monotonic()
        assert first.poll() is None
        assert tokenizer.rest(0.0) is None
        assert first.poll() is not None
        assert tokenizer.rest(0.0) is None  # there is none now
        assert tokenizer.encode("b1") == [*b"b1"]
        assert tokenizer._process is not first


def hostile_model(folder: Path, **changes: Any) -> str:
    """A model with this tokenizer.json."""
    spec = tiny_spec(vocab_size=300)
    directory = write_hf(folder / "model", spec, random_tensors(spec))
    (directory / "config.json").write_text(
        json.dumps(config_of(spec) | {"bos_token_id": None, "eos_token_id": None})
    )
    (directory / "tokenizer.json").write_text(tokenizer_json(**changes))
    return str(directory)


# Each try stays below the limit of the library, which is for one place in the text.
ENDLESS = {
    "pre_tokenizer": sequence("Sequence", "pretokenizers", [
        {"type": "Split", "pattern": {"Regex": r"(?:a|aa){1,16}[0-9]"}, "behavior": "Isolated",
         "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
         "use_regex": False},
    ])
}  # fmt: skip


def test_a_text_that_computes_without_end_is_refused_and_the_next_is_encoded(
    tmp_path: Path,
) -> None:
    with ConfinedTokenizer(hostile_model(tmp_path, **ENDLESS), text_seconds=0.3) as tokenizer:
        assert tokenizer.encode("b1") == [*b"b1"]
        with pytest.raises(ModelError, match=r"takes more than 0\.\d+ s of computing"):
            tokenizer.encode("a" * 6000)
        assert tokenizer.encode("b1") == [*b"b1"]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may use no more than the limit: it is ended, and the next text is encoded."""
    source = hostile_model(tmp_path)
    with ConfinedTokenizer(source) as tokenizer:
        assert tokenizer.encode("b1") == [*b"b1"]  # it limits itself before the first text
        process = tokenizer._process
        assert process is not None
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
        assert int(line.split()[3]) < sandbox.SPARE_BYTES + (256 << 20)
        process.kill()
        process.wait()
        assert tokenizer.encode("b1") == [*b"b1"]  # one that ended while idle is replaced


@pytest.mark.parametrize("change", ["merges", "config", "gone"])
def test_files_that_change_while_the_process_is_gone_are_noticed(
    tmp_path: Path, change: str
) -> None:
    """Another process would encode by the new files, and the root decode by the old ones."""
    source = hostile_model(tmp_path)
    file, config = Path(source) / "tokenizer.json", Path(source) / "tokenizer_config.json"
    old = file.read_text()
    with ConfinedTokenizer(source) as tokenizer:
        wanted = tokenizer.encode("a ab")
        if change == "merges":
            new = json.loads(old)
            new["normalizer"] = {"type": "Lowercase"}  # the same vocabulary, other ids
            file.write_text(json.dumps(new))
        elif change == "config":
            config.write_text(json.dumps({"add_bos_token": True, "bos_token": "a"}))
        else:
            file.unlink()
        assert tokenizer.encode("a ab") == wanted  # by the process that is there
        for _ in range(2):
            tokenizer.close()
            with pytest.raises(ModelError, match=r"changed while in use|no tokenizer"):
                tokenizer.encode("a ab")
        file.write_text(old)
        config.unlink(missing_ok=True)
        assert tokenizer.encode("a ab") == wanted


@pytest.mark.parametrize("letters", ["01+=", "a"])
def test_a_vocabulary_without_the_letter_a(tmp_path: Path, letters: str) -> None:
    """The process encodes a text before the first one, which not every vocabulary has."""
    spec = tiny_spec(vocab_size=len(letters))
    directory = write_hf(tmp_path / "model", spec, random_tensors(spec))
    (directory / "characters.json").write_text(json.dumps({"characters": list(letters)}))
    with ConfinedTokenizer(str(directory)) as tokenizer:
        for _ in range(2):
            assert tokenizer.encode(letters) == [*range(len(letters))]
            assert tokenizer.encode(letters, parse_special=True) == [*range(len(letters))]
        with pytest.raises(ModelError, match="the character 'b' is not one of"):
            tokenizer.encode("b")


def test_reasons_of_a_tokenizer_that_does_not_load(tmp_path: Path) -> None:
    source = hostile_model(tmp_path, normalizer=doubling(27))
    with pytest.raises(ModelError, match="normalizer makes up to"):
        ConfinedTokenizer(source)
    with pytest.raises(ModelError, match="there is no model at"):
        ConfinedTokenizer(str(tmp_path / "absent"))


def test_a_tokenizer_without_files_needs_no_process() -> None:
    with (
        open_model("random:llama-3-8b") as model,
        confined(model, "random:llama-3-8b") as tokenizer,
    ):
        assert not isinstance(tokenizer, ConfinedTokenizer)


# Templates.


def test_a_long_text_of_a_template_is_refused_before_it_is_tokenized() -> None:
    messages = [{"role": "user", "content": "hi"}]
    long = ByteTokenizer("{% for _ in range(16) %}{{ 'ab ' * 340000 }}{% endfor %}")
    with pytest.raises(HearthError, match=r"the chat template makes \d+ bytes") as caught:
        conversation_ids(long, messages, None, 64)
    assert caught.value.reason == Reason.INVALID_ARGUMENT
    # One that is only too long for the context says so, as a prompt of that length does.
    count = MAX_BYTES_PER_POSITION * 64 + 1
    tokenizer = ByteTokenizer(f"{{{{ 'a' * {count} }}}}")
    with pytest.raises(HearthError, match=f"has {count} bytes, and at most") as caught:
        conversation_ids(tokenizer, messages, None, 64)
    assert caught.value.reason == Reason.PROMPT_TOO_LONG
