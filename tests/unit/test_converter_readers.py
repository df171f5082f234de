"""The readers: every format gives the same tensors, and any cut is that place of the whole."""

import json
import threading
from pathlib import Path
from typing import Any

import known_answers
import numpy as np
import pytest
from converter_builders import (
    encode,
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    hf_config,
    hf_name,
    is_norm,
    random_tensors,
    rotary,
    spm_metadata,
    tiny_spec,
    write_gguf,
    write_hf,
    write_safetensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth import _native
from hearth.converter import Model, ModelError, open_model
from hearth.converter.convert import convert
from hearth.converter.readers.random import RandomModel, random_spec
from hearth.converter.readers.shapes import SHAPES
from hearth.converter.weights import FORMATS, PACKED, row_bytes

SPEC = tiny_spec()
TENSORS = random_tensors(SPEC)


def numbers(model: Model, name: str, **cut: Any) -> np.ndarray:
    return model.read(name, "f32", **cut).view("<f4")


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_hugging_face_tensors(tmp_path: Path, kind: str, shards: int) -> None:
    model = open_model(str(write_hf(tmp_path / "model", SPEC, TENSORS, kind, shards)))
    assert vars(model.spec) == vars(SPEC) | {"name": "model"}
    assert model.weight_type == kind
    for name, values in TENSORS.items():
        stored = encode(values, kind)
        if kind == "bf16":
            expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        else:
            expected = _native.dequantize(stored, kind, values.shape[1])
        assert (numbers(model, name) == expected).all(), name
        if kind == "f16" and not is_norm(name):
            assert (model.read(name, "f16") == stored).all()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_gguf_tensors(tmp_path: Path, kind: str) -> None:
    model = open_model(str(write_gguf(tmp_path / "model.gguf", SPEC, TENSORS, kind)))
    assert model.spec == SPEC
    assert model.weight_type == kind
    for name, values in TENSORS.items():
        if is_norm(name):
            assert (numbers(model, name) == values).all()
        elif kind != "bf16":
            # Also Q and K: their rows are back in order, and quantized rows are not touched.
            assert model.stored_type(name) == kind
            assert (model.read(name, kind) == encode(values, kind)).all(), name
        else:
            expected = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
            assert (numbers(model, name) == expected).all(), name


def test_gguf_and_hugging_face_files_of_one_model_read_alike(tmp_path: Path) -> None:
    spec = tiny_spec(heads=6, kv_heads=3, head_size=10, tied=True, ffn_size=100)
    tensors = random_tensors(spec, 7)
    gguf = open_model(str(write_gguf(tmp_path / "model.gguf", spec, tensors)))
    hf = open_model(str(write_hf(tmp_path / "hf", spec, tensors)))
    assert gguf.spec.tied and "head" not in gguf.spec.tensor_names()
    for name in spec.tensor_names():
        assert (gguf.read(name, "f32") == hf.read(name, "f32")).all(), name
    # Rows that blocks of 32 do not fit stay f16, whatever is asked for.
    assert gguf.effective_type("layers.0.w2", "q4_0") == "f16"
    assert gguf.effective_type("layers.0.w1", "q4_0") == "q4_0"
    assert (gguf.read("layers.0.wk", "q4_0") == hf.read("layers.0.wk", "q4_0")).all()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    base = tmp_path_factory.mktemp("sources")
    models: dict[str, Model] = {"random": RandomModel(SPEC, 3)}
    for kind in ("f32", "f16", "bf16"):
        models[f"hf-{kind}"] = open_model(str(write_hf(base / kind, SPEC, TENSORS, kind, 2)))
    for kind in ("f32", "bf16", "q8_0", "q4_0"):
        path = write_gguf(base / f"{kind}.gguf", SPEC, TENSORS, kind)
        models[f"gguf-{kind}"] = open_model(str(path))
    return models


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_cut_is_that_place_of_the_whole(sources: dict[str, Model], data: st.DataObject) -> None:
    model = sources[data.draw(st.sampled_from(sorted(sources)))]
    name = data.draw(st.sampled_from(SPEC.tensor_names()))
    rows, columns = SPEC.tensor_shape(name)
    kinds = [kind for kind in PACKED if columns % FORMATS[kind].columns == 0]
    kind = "f32" if is_norm(name) else data.draw(st.sampled_from(kinds))
    unit = max(FORMATS[kind].columns, 32)
    row_cut = sorted(data.draw(st.tuples(*[st.integers(0, rows)] * 2)))
    column_cut = [
        c * unit for c in sorted(data.draw(st.tuples(*[st.integers(0, columns // unit)] * 2)))
    ]
    whole = model.read(name, kind)
    begin, end = (row_bytes(kind, c) for c in column_cut)
    cut = model.read(name, kind, (row_cut[0], row_cut[1]), (column_cut[0], column_cut[1]))
    assert cut.dtype == np.uint8 and cut.flags.c_contiguous
    assert (cut == whole[row_cut[0] : row_cut[1], begin:end]).all()
    assert cut.shape == (row_cut[1] - row_cut[0], end - begin)


def test_reading_in_blocks_of_rows_changes_nothing(
    sources: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {name: model.read("layers.1.wq", "q8_0") for name, model in sources.items()}
    monkeypatch.setattr("hearth.converter.model._BLOCK_NUMBERS", 7 * 64)
    for name, model in sources.items():
        assert (model.read("layers.1.wq", "q8_0") == whole[name]).all(), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("layers.0.wq", "f32", (0, 65)), "rows 0 to 65 of layers.0.wq are outside its 64"),
        (("layers.0.wq", "f32", (5, 4)), "rows 5 to 4"),
        (("layers.0.wq", "f32", None, (-1, 4)), "columns -1 to 4"),
        (("layers.0.wq", "q4_0", None, (0, 40)), "40 columns.*blocks of 32"),
        (("layers.0.wq", "q8_0", None, (16, 48)), "blocks of 32"),
        (("layers.9.wq", "f32"), "no tensor named 'layers.9.wq'"),
        (("layers.0.wq", "q4_2"), "'q4_2' is unknown.*f32, f16, q8_0, q4_0"),
        (("norm", "f16"), "norm is a vector"),
    ],
)
def test_cuts_that_cannot_be_made(
    sources: dict[str, Model], arguments: tuple[Any, ...], words: str
) -> None:
    for model in sources.values():
        with pytest.raises(ModelError, match=words):
            model.read(*arguments)


def test_a_cut_within_stored_blocks_is_unpacked(sources: dict[str, Model]) -> None:
    """As for a head of 8 columns on a node of its own, whose slice becomes f16."""
    model = sources["gguf-q4_0"]
    whole = model.read("layers.0.wq", "f16")
    assert np.array_equal(model.read("layers.0.wq", "f16", None, (8, 40)), whole[:, 16:80])
    with pytest.raises(ModelError, match="blocks of 32"):
        model.read("layers.0.wq", "q4_0", None, (8, 40))


def test_former_names_of_types_still_work(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", SPEC, TENSORS)
    for former, name in (("q80", "q8_0"), ("q40", "q4_0")):
        model = open_model(str(path), former)
        assert model.weight_type == name
        made = convert(str(path), tmp_path / former, former)
        # As directories were written before the names changed.
        file = made / "model.safetensors"
        written, before = file.read_bytes(), f':"{name}"'.encode()
        assert before in written
        file.write_bytes(written.replace(before, f':"{former}" '.encode()))
        assert open_model(str(made)).weight_type == name


def test_types_to_load_in(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", tiny_spec(ffn_size=100), random_tensors(tiny_spec(ffn_size=100))
    )
    stored, asked = open_model(str(path)), open_model(str(path), "q4_0")
    assert (stored.weight_type, asked.weight_type) == ("f32", "q4_0")
    assert [asked.tensor_type(f"layers.0.{part}") for part in ("wq", "w2", "ffn_norm")] == [
        "q4_0",
        "f16",
        "f32",
    ]
    assert stored.tensor_type("layers.0.w2") == "f32"
    with pytest.raises(ModelError, match="'q5' is unknown"):
        open_model(str(path), "q5")


def test_many_threads_read_one_model(sources: dict[str, Model]) -> None:
    model = sources["gguf-q4_0"]
    expected = {name: model.read(name, "f32").tobytes() for name in SPEC.tensor_names()}
    wrong: list[str] = []

    def read_all() -> None:
        for name, data in expected.items():
            if model.read(name, "f32").tobytes() != data:
                wrong.append(name)

    threads = [threading.Thread(target=read_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_numbers_that_f16_cannot_hold_are_named(tmp_path: Path) -> None:
    tensors = TENSORS | {"layers.0.wq": TENSORS["layers.0.wq"].copy()}
    tensors["layers.0.wq"][3, 5] = 1e6
    tensors["layers.0.wk"] = np.full_like(TENSORS["layers.0.wk"], np.nan)
    for kind in ("f32", "bf16"):
        model = open_model(str(write_hf(tmp_path / kind, SPEC, tensors, kind)))
        with pytest.raises(
            ModelError, match=r"layers\.0\.wq holds 99.*|layers\.0\.wq holds 1e\+06"
        ):
            model.read("layers.0.wq", "f16")
        model.read("layers.0.wq", "f16", (0, 3))
        with pytest.raises(ModelError, match=r"layers\.0\.wk holds numbers that are infinite"):
            model.read("layers.0.wk", "q8_0")


def remove(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key != name}


def test_hugging_face_models_that_are_incomplete_or_strange(tmp_path: Path) -> None:
    missing = write_hf(tmp_path / "missing", SPEC, remove(TENSORS, "layers.1.w3"))
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        open_model(str(missing))
    shape = write_hf(tmp_path / "shape", SPEC, TENSORS, config=hf_config(tiny_spec(ffn_size=128)))
    with pytest.raises(ModelError, match=r"shape \[96, 64\], but .*\[128, 64\]"):
        open_model(str(shape))
    more = write_hf(tmp_path / "more", SPEC, random_tensors(tiny_spec(layers=3)))
    with pytest.raises(ModelError, match=r"model\.layers\.2\..* does not belong to .* 2 layers"):
        open_model(str(more))
    lost = write_hf(tmp_path / "lost", SPEC, TENSORS, shards=2)
    (lost / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of 2 weight files are absent.*model-00002"):
        open_model(str(lost))


TIED = tiny_spec(tied=True)


def write_as(directory: Path, tensors: dict[str, np.ndarray], **changes: Any) -> Path:
    """A directory with tensors under the names given."""
    directory.mkdir()
    write_safetensors(directory / "model.safetensors", tensors, "f32")
    (directory / "config.json").write_text(json.dumps(hf_config(TIED) | changes))
    return directory


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_checkpoint_below_the_head(tmp_path: Path, architecture: str, prefix: str) -> None:
    """Those for embeddings: AutoModel's names, or its class."""
    shaped = {hf_name(n): values[0] if is_norm(n) else values for n, values in TENSORS.items()}
    shaped.pop("lm_head.weight", None)
    below = {prefix + name.removeprefix("model."): values for name, values in shaped.items()}
    settings = {"tie_word_embeddings": False, "architectures": [architecture]}
    path = str(write_as(tmp_path / "m", below, **settings))
    if prefix and architecture != "LlamaModel":
        with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
            open_model(path)
        return
    with open_model(path) as model:
        assert model.notes == ["m: it has no head: it makes vectors of texts, and generates noise"]
        for name in model.spec.tensor_names():
            assert (numbers(model, name) == TENSORS[name]).all(), name


def test_a_tied_head_is_stored_as_either_or_both(tmp_path: Path) -> None:
    """transformers 5.24 loads the same from all four."""
    shaped = {hf_name(n): values[0] if is_norm(n) else values for n, values in TENSORS.items()}
    shaped.pop("lm_head.weight")
    embedding = shaped["model.embed_tokens.weight"]
    below = {name.removeprefix("model."): values for name, values in shaped.items()}
    as_head = shaped | {"lm_head.weight": embedding}
    both = dict(as_head)
    as_head.pop("model.embed_tokens.weight")
    for number, stored in enumerate((shaped, as_head, both, below)):
        model = open_model(str(write_as(tmp_path / str(number), stored)))
        assert model.spec.tied
        assert (numbers(model, "embedding") == embedding).all()
    other = both | {"lm_head.weight": embedding + 1}
    with pytest.raises(ModelError, match=r"lm_head\.weight and model\.embed_tokens\.weight differ"):
        open_model(str(write_as(tmp_path / "other", other)))
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight is missing"):
        open_model(str(write_as(tmp_path / "untied", as_head, tie_word_embeddings=False)))


def test_a_single_file_comes_before_an_index(tmp_path: Path) -> None:
    """As in transformers; the parts may be another model's, or gone."""
    directory = write_hf(tmp_path / "m", SPEC, random_tensors(SPEC, 5), shards=2)
    write_hf(directory, SPEC, TENSORS)
    (directory / "consolidated.safetensors").write_bytes(b"Mistral's own names")
    (directory / "original").mkdir()
    for _ in range(2):
        assert (numbers(open_model(str(directory)), "norm") == TENSORS["norm"]).all()
        (directory / "model-00001-of-00002.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["consolidated.safetensors"],
            r"but consolidated\.safetensors; get the files",
        ),
        (["model.fp16.safetensors"], r"but model\.fp16\.safetensors"),
        (["adapter_model.safetensors"], r"adapter_model\.safetensors is an adapter: merge it"),
        (["pytorch_model.bin"], r"pickled weights .* are never read"),
        ([], r"has neither model\.safetensors nor model\.safetensors\.index\.json$"),
    ],
)
def test_directories_with_other_files_say_what_is_there(
    tmp_path: Path, names: list[str], words: str
) -> None:
    directory = write_hf(tmp_path / "m", SPEC, TENSORS)
    (directory / "model.safetensors").unlink()
    for name in names:
        (directory / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=words):
        open_model(str(directory))


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter, not a model"):
        open_model(str(tmp_path))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.model", "tokenizer.json", "m.gguf"]
)
def test_a_git_lfs_pointer_is_named(tmp_path: Path, name: str) -> None:
    directory = write_hf(tmp_path / "m", SPEC, TENSORS)
    (directory / name).write_bytes(POINTER)
    source = directory / name if name.endswith("gguf") else directory
    with pytest.raises(ModelError, match=rf"{name} is a Git LFS pointer.*`git lfs pull` in "):
        open_model(str(source))


@pytest.mark.parametrize("more", [1, 256])
def test_a_tokenizer_may_have_a_few_tokens_that_the_model_lacks(
    tmp_path: Path, more: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Llama 2's first chat models have <pad> as token 32000 of 32000."""
    directory = write_hf(tmp_path / "m", SPEC, TENSORS)
    (directory / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(300 + more), {}))
    tokenizer = open_model(str(directory)).tokenizer()
    assert tokenizer.vocab_size == 300 + more
    assert f"{more} more tokens than the model's embedding has rows (300)" in caplog.text
    (directory / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(300 + 257), {}))
    with pytest.raises(ModelError, match="557 tokens, the model's embedding only 300 rows"):
        open_model(str(directory)).tokenizer()


def test_a_foreign_type_of_tensor_is_named(tmp_path: Path) -> None:
    directory = write_hf(tmp_path / "hf", SPEC, TENSORS)
    shaped = {hf_name(n): values[0] if is_norm(n) else values for n, values in TENSORS.items()}
    write_safetensors(directory / "model.safetensors", shaped, "f64")
    with pytest.raises(ModelError, match=r"is F64, which Hearth can't read.*F32, F16, BF16"):
        open_model(str(directory))
    stored = gguf_tensors(SPEC, TENSORS, "f32")
    _, shape, data = stored["blk.0.attn_q.weight"]
    for number, name in ((9, "Q8_1"), (99, "of the unknown type 99")):
        strange = stored | {"blk.0.attn_q.weight": (number, shape, data)}
        path = tmp_path / "strange.gguf"
        path.write_bytes(gguf_bytes(gguf_metadata(SPEC), strange))
        with pytest.raises(
            ModelError,
            match=f"blk.0.attn_q.weight is {name}, which Hearth can't read; "
            "types it reads here: F32, F16, Q8_0, Q4_0, Q4_1",
        ):
            open_model(str(path))


def gguf_with(path: Path, values: dict[str, Any], **tensors: Any) -> str:
    metadata = gguf_metadata(SPEC) | spm_metadata() | values
    metadata = {key: value for key, value in metadata.items() if value is not None}
    stored = gguf_tensors(SPEC, TENSORS, "f32") | tensors.get("more", {})
    path.write_bytes(gguf_bytes(metadata, remove(stored, tensors.get("without", ""))))
    return str(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"general.architecture": "bloom"}, "'bloom' is not supported; Hearth runs llama"),
        ({"llama.expert_count": 8}, "llama.expert_used_count is missing"),
        ({"llama.embedding_length": None}, "llama.embedding_length is missing"),
        ({"llama.block_count": 3}, r"blk\.2\.attn_norm\.weight is missing"),
        ({"llama.feed_forward_length": 128}, r"shape \[96, 64\].*\[128, 64\]"),
        ({"llama.rope.dimension_count": 18}, "of 18 elements are more than head_size"),
        ({"llama.attention.head_count": "4"}, "a whole number is needed"),
        ({"llama.rope.scaling.type": "ntk"}, "'ntk' is not supported"),
        ({"llama.vocab_size": 301}, "301 tokens, but the embedding has only 300 rows"),
    ],
)
def test_gguf_files_that_are_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        open_model(gguf_with(tmp_path / "m.gguf", values))


def test_gguf_rope_settings(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    more = {"rope_freqs.weight": (0, (8,), factors.tobytes())}
    spec = open_model(gguf_with(tmp_path / "m.gguf", {}, more=more)).spec
    assert np.allclose(rotary(spec), rotary(SPEC) / factors, rtol=1e-6)
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    linear = open_model(gguf_with(tmp_path / "l.gguf", scaling)).spec
    assert np.allclose(rotary(linear), rotary(SPEC) / 4, rtol=1e-6)


def test_an_unknown_tensor_is_not_ignored(tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.scale": (0, (64,), bytes(256))}
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.scale does not belong"):
        open_model(gguf_with(tmp_path / "m.gguf", {}, more=bias))


def test_random_weights_have_the_size_of_trained_ones() -> None:
    model = RandomModel(tiny_spec(hidden_size=256, ffn_size=512, layers=8))
    assert model.weight_type == "q4_0" and model.stored_type("norm") == "f32"
    assert (numbers(model, "layers.3.ffn_norm") == 1).all()
    for name, deviation in (("layers.0.w1", 1 / 16), ("layers.0.wo", 1 / 8 / 4), ("head", 1 / 16)):
        values = numbers(model, name)
        assert abs(values.std() / deviation - 1) < 0.05 and abs(values.mean()) < deviation / 20
    other = RandomModel(model.spec, seed=1)
    assert (other.read("head", "q4_0") != model.read("head", "q4_0")).any()
    assert (model.read("layers.0.w1", "q4_0") != model.read("layers.0.w3", "q4_0")).any()


def test_a_cut_of_the_largest_shape_needs_only_its_own_memory() -> None:
    model = open_model("random:llama-3.1-405b:7")
    cut = model.read("layers.125.w2", "q4_0", (16000, 16016), (53216, 53248))
    assert cut.shape == (16, 18) and cut.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_first_layers_of_a_shape(shape: str) -> None:
    """Each is of the kind that it has in the whole, whose other tensors stay."""
    whole = random_spec(shape)
    for layers in (1, 2, 7, whole.layers // 2, whole.layers):
        part = random_spec(shape, layers)
        assert [part.kinds[kind] for kind in part.kind_of_layer] == [
            whole.kinds[kind] for kind in whole.kind_of_layer[:layers]
        ]
        assert part.ropes == whole.ropes
    with open_model(f"random:{shape}@1:3") as model:
        assert (model.spec.name, model.spec.layers) == (f"{shape}@1", 1)
        assert set(model.spec.tensor_names()) <= set(whole.tensor_names())
    with open_model(f"random:{shape}@{whole.layers}") as model:
        assert model.spec.tensors == whole.tensors


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("random:gpt-9", "'gpt-9' is unknown.*tinyllama-1.1b"),
        ("random:llama-3-8b:x", "seed 'x'"),
        ("random:llama-3-8b:" + "9" * 5000, "seed '9+' is not"),
        ("random:llama-3-8b@0", "'0' layers; it has 32, give 1 to 32"),
        ("random:llama-3-8b@33", "'33' layers"),
        ("random:llama-3-8b@", "'' layers"),
        ("random:llama-3-8b@two:1", "'two' layers"),
        ("/nowhere/at/all", "no model at"),
        ("", "neither a config.json nor a .gguf or .m file|no model at"),
    ],
)
def test_sources_that_are_no_models(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=words):
        open_model(source)


def test_directories_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither a config\.json nor a \.gguf"):
        open_model(str(tmp_path))
    write_gguf(tmp_path / "one.gguf", SPEC, TENSORS)
    assert open_model(str(tmp_path)).spec == SPEC
    write_gguf(tmp_path / "two.gguf", SPEC, TENSORS)
    with pytest.raises(ModelError, match=r"2 GGUF models; name one: one\.gguf, two\.gguf"):
        open_model(str(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="not a GGUF file"):
        open_model(str(tmp_path / "weights.bin"))


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    directory = write_hf(tmp_path / "m", SPEC, TENSORS)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights .* are never read"):
        open_model(str(directory))


def test_stories260k_decodes_its_expected_text(testdata: Path) -> None:
    with open_model(str(testdata / "stories260k/stories260K.gguf")) as model:
        ids, text = known_answers.read_stories260k()
        tokenizer = model.tokenizer()
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == [1, *ids]
        assert (model.spec.layers, model.spec.kv_heads, model.spec.vocab_size) == (5, 4, 512)
        assert model.spec.parameters == 260_032 + 512 * 64  # 260K, and the head untied
