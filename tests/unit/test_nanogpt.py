"""Checkpoints of nanoGPT and directories of LitGPT: tensors, shapes and vocabularies."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch_files as files
import yaml

from hearth.converter import ModelError, open_model
from hearth.converter.blocks import AttentionSpec
from hearth.converter.convert import convert
from hearth.converter.model import Model
from hearth.converter.tokenizers.characters import CharacterTokenizer
from hearth.converter.tokenizers.confined import ConfinedTokenizer

F32 = npt.NDArray[np.float32]
HIDDEN, LAYERS, HEADS, CONTEXT = 24, 2, 3, 16
CHARACTERS = "\n !abcdefghéß🙂"
META = {
    "vocab_size": len(CHARACTERS),
    "itos": dict(enumerate(CHARACTERS)),
    "stoi": {character: id for id, character in enumerate(CHARACTERS)},
}


def gpt(vocab: int = len(CHARACTERS), hidden: int = HIDDEN, bias: bool = True) -> dict[str, F32]:
    """The state of a random GPT, by nanoGPT's names; the head is the embedding."""
    random = np.random.default_rng(vocab)

    def made(*shape: int) -> F32:
        return random.standard_normal(shape, dtype=np.float32)

    state = {"transformer.wte.weight": made(vocab, hidden)}
    state["transformer.wpe.weight"] = made(CONTEXT, hidden)
    shapes = {
        "ln_1.weight": (hidden,),
        "attn.c_attn.weight": (3 * hidden, hidden),
        "attn.c_proj.weight": (hidden, hidden),
        "ln_2.weight": (hidden,),
        "mlp.c_fc.weight": (4 * hidden, hidden),
        "mlp.c_proj.weight": (hidden, 4 * hidden),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            place = f"transformer.h.{layer}.{name}"
            state[place] = made(*shape)
            if bias:
                state[place.replace("weight", "bias")] = made(shape[0])
    state["transformer.ln_f.weight"] = made(hidden)
    if bias:
        state["transformer.ln_f.bias"] = made(hidden)
    return state


def checkpoint(state: dict[str, F32], vocab: int = len(CHARACTERS), **args: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_embd": HIDDEN,
        "block_size": CONTEXT,
    }
    sizes |= {"vocab_size": vocab, "bias": True, "dropout": 0.0}
    return {
        "model": {f"_orig_mod.{name}": value for name, value in state.items()},
        "optimizer": {
            "state": {0: {"step": np.full(1, 3.0), "exp_avg": state["transformer.wte.weight"]}}
        },
        "model_args": sizes | args,
        "iter_num": 250,
        "best_val_loss": np.full(1, 1.5),
        "config": {"dataset": "letters", "compile": True},
    }


def whole(model: Model, name: str) -> F32:
    rows, columns = model.spec.tensor_shape(name)
    return model.read(name, "f32").view(np.float32).reshape(rows, columns)


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint(tmp_path: Path, bias: bool) -> None:
    state = gpt(bias=bias)
    files.write_checkpoint(tmp_path / "ckpt.pt", checkpoint(state))
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(META))
    with open_model(str(tmp_path)) as model:
        spec = model.spec
        assert (spec.layers, spec.heads, spec.context_size, spec.tied) == (2, 3, 16, True)
        (block,) = spec.kinds
        assert block.feed_forward is not None
        assert (block.feed_forward.activation, block.feed_forward.bias) == ("gelu", bias)
        fused = state["transformer.h.1.attn.c_attn.weight"]
        for place, part in enumerate(("wq", "wk", "wv")):
            found = whole(model, f"layers.1.{part}")
            assert np.array_equal(found, fused[place * HIDDEN : (place + 1) * HIDDEN])
        assert np.array_equal(
            whole(model, "layers.0.w2"), state["transformer.h.0.mlp.c_proj.weight"]
        )
        assert np.array_equal(whole(model, "positions"), state["transformer.wpe.weight"])
        expected = state["transformer.h.0.ln_2.bias"] if bias else np.zeros(HIDDEN)
        assert np.array_equal(whole(model, "layers.0.ffn_norm.bias")[0], expected)
        if bias:
            fused = state["transformer.h.0.attn.c_attn.bias"]
            assert np.array_equal(whole(model, "layers.0.bk")[0], fused[HIDDEN : 2 * HIDDEN])
        tokenizer = model.tokenizer()
        assert tokenizer.encode("a hé🙂\n") == [CHARACTERS.index(c) for c in "a hé🙂\n"]
        assert tokenizer.decode([3, 12, 13]) == "aß🙂"
        with pytest.raises(ModelError, match="'z' is not one of the 14"):
            tokenizer.encode("az")
        assert model.identify()
        identities = [model.identity(name) for name in spec.tensor_names()]
    converted = convert(str(tmp_path / "ckpt.pt"), tmp_path / "converted", "f16")
    with open_model(str(converted)) as model:
        assert model.tokenizer().encode("bad") == [4, 3, 6]
        assert np.allclose(
            whole(model, "layers.1.wo"), state["transformer.h.1.attn.c_proj.weight"], atol=2e-3
        )
    assert len(identities) == len(set(identities)) + (0 if bias else 4)  # equal zeros


def test_meta_in_the_folder_of_its_data(tmp_path: Path) -> None:
    """As train.py leaves it: out/ckpt.pt beside data/letters/meta.pkl."""
    (tmp_path / "out").mkdir()
    (tmp_path / "data" / "letters").mkdir(parents=True)
    files.write_checkpoint(tmp_path / "out" / "ckpt.pt", checkpoint(gpt()))
    with (
        open_model(str(tmp_path / "out")) as model,
        pytest.raises(ModelError, match=r"no meta\.pkl"),
    ):
        model.tokenizer()
    (tmp_path / "data" / "letters" / "meta.pkl").write_bytes(pickle.dumps(META, 2))
    with open_model(str(tmp_path / "out")) as model:
        assert model.tokenizer().vocab_size == len(CHARACTERS)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_tensors_alone(tmp_path: Path, heads: int) -> None:
    """A state_dict: sizes by the tensors, heads by a file beside it."""
    files.write_checkpoint(tmp_path / "model.pt", gpt(hidden=128))
    with pytest.raises(ModelError, match=r"the number of heads: put model_args\.json with"):
        open_model(str(tmp_path / "model.pt"))
    (tmp_path / "model_args.json").write_text(json.dumps({"n_head": heads}))
    for path in (tmp_path, tmp_path / "model.pt"):
        with open_model(str(path)) as model:
            spec = model.spec
            assert (spec.heads, spec.layers, spec.context_size) == (heads, LAYERS, CONTEXT)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "do not say the number of heads"),
        ("[]", "holds a JSON list"),
        ('{"n_head": 3}', "not a multiple|n_embd|heads"),
        ('{"n_head": 0}', "n_head"),
        ('{"n_head": "4"}', "model_args.n_head is '4'; a whole number is needed"),
    ],
)
def test_a_bad_number_of_heads(tmp_path: Path, content: str, problem: str) -> None:
    files.write_checkpoint(tmp_path / "model.pt", gpt(hidden=128))
    (tmp_path / "model_args.json").write_text(content)
    with pytest.raises(ModelError, match=problem):
        open_model(str(tmp_path / "model.pt"))


def test_an_untied_head(tmp_path: Path) -> None:
    state = gpt() | {"lm_head.weight": np.ones((len(CHARACTERS), HIDDEN), np.float32)}
    files.write_checkpoint(tmp_path / "ckpt.pt", checkpoint(state))
    with open_model(str(tmp_path)) as model:
        assert not model.spec.tied
        assert whole(model, "head").min() == 1


@pytest.fixture
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    (tmp_path / "tiktoken").mkdir()
    return tmp_path / "tiktoken"


# Names by which tiktoken keeps the two files.
KEPT = {
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
}


@pytest.mark.parametrize("place", ["beside", "tiktoken", "nowhere", "damaged"])
def test_the_vocabulary_of_gpt2(
    tmp_path: Path, testdata: Path, no_caches: Path, place: str
) -> None:
    state = gpt(50304)
    files.write_checkpoint(tmp_path / "ckpt.pt", checkpoint(state, 50304), "f16")
    source = testdata / "tokenizers" / "gpt2"
    for name, other in KEPT.items():
        if place == "beside":
            shutil.copy(source / name, tmp_path / name)
        elif place != "nowhere":
            shutil.copy(source / name, no_caches / other)
    if place == "damaged":
        with (no_caches / KEPT["vocab.bpe"]).open("ab") as stream:
            stream.write(b"x y\n")
    with open_model(str(tmp_path)) as model:
        if place in ("nowhere", "damaged"):
            with pytest.raises(ModelError, match="hearth pull openai-community/gpt2"):
                model.tokenizer()
            return
        tokenizer = model.tokenizer()
        assert tokenizer.encode("Hello world!") == [15496, 995, 0]
        assert tokenizer.eos_ids == {50256}
        assert model.tokenizer_source.files().keys() == KEPT.keys()


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "TMPDIR"])
def test_the_process_of_the_tokenizer_finds_the_caches(
    tmp_path: Path, testdata: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Those of the variables that tiktoken reads, and of the directory for temporary files."""
    files.write_checkpoint(tmp_path / "ckpt.pt", checkpoint(gpt(50304), 50304), "f16")
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv(variable, str(tmp_path))
    cache = tmp_path / "data-gym-cache" if variable == "TMPDIR" else tmp_path
    cache.mkdir(exist_ok=True)
    for name, kept in KEPT.items():
        shutil.copy(testdata / "tokenizers" / "gpt2" / name, cache / kept)
    with ConfinedTokenizer(str(tmp_path)) as tokenizer:
        assert tokenizer.encode("Hello world!") == [15496, 995, 0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.pop("model"), "transformer.wte.weight is missing|does not hold"),
        (lambda c: c["model_args"].pop("n_head"), None),
        (lambda c: c["model_args"].update(n_head=5), "not a multiple of n_head 5"),
        (lambda c: c["model_args"].update(n_layer=3), "h.2.ln_1.weight is missing"),
        (lambda c: c["model_args"].update(n_layer=1), "does not belong"),
        (lambda c: c["model_args"].update(n_layer=1 << 40), "layers"),
        (lambda c: c["model_args"].update(vocab_size=99), "shape"),
        (lambda c: c["model_args"].update(block_size="x"), "whole number"),
        (lambda c: c["model"].pop("_orig_mod.transformer.h.0.attn.c_attn.weight"), "is missing"),
        (lambda c: c["model"].update(extra=np.ones((2, 2))), "tensor extra does not belong"),
    ],
)
def test_checkpoints_that_contradict_themselves(
    tmp_path: Path, change: Any, problem: str | None
) -> None:
    value = checkpoint(gpt())
    change(value)
    files.write_checkpoint(tmp_path / "ckpt.pt", value)
    if problem is None:  # twelve heads where none are named, which do not divide 24 into even ones
        with open_model(str(tmp_path)) as model:
            assert model.spec.heads == 12
        return
    with pytest.raises(ModelError, match=problem):
        open_model(str(tmp_path))


def doubled(times: int) -> Any:
    """A value that holds another twice, and so on: a repr of it has 2^times parts."""
    value: Any = ()
    for _ in range(times):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    ("meta", "problem"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "imports|uses"),
        (pickle.dumps({"itos": {0: "a", 2: "b"}}), "itos"),
        (pickle.dumps({"itos": {0: "ab"}}), "'ab', not a character"),
        (pickle.dumps({"itos": {0: 7}}), "is 7, not a character"),
        (pickle.dumps({"itos": {0: "a", 1: "a"}}), "occur twice"),
        (pickle.dumps({"itos": {0: doubled(12)}}), r"is \(\(\(\.\.\.\), .*not a character"),
        (pickle.dumps({"itos": {0: doubled(40)}}), "more than 4194304 parts"),
        (pickle.dumps([1]), "itos"),
        (b"", "damaged"),
    ],
)
def test_damaged_meta(tmp_path: Path, meta: bytes, problem: str) -> None:
    files.write_checkpoint(tmp_path / "ckpt.pt", checkpoint(gpt()))
    (tmp_path / "meta.pkl").write_bytes(meta)
    with open_model(str(tmp_path)) as model, pytest.raises(ModelError, match=problem):
        model.tokenizer()


def test_half_of_a_pair_is_no_character() -> None:
    with pytest.raises(ModelError, match="not a character"):
        CharacterTokenizer(["a", "\ud800"], "made")


# -- LitGPT ----------------------------------------------------------------------------------------

LIT = {
    "name": "tiny", "hf_config": {"name": "tiny", "org": "me"}, "n_layer": 2, "n_embd": 32,
    "n_head": 4, "n_query_groups": 2, "head_size": 8, "intermediate_size": 48, "vocab_size": 30,
    "padded_vocab_size": 64, "block_size": 64, "norm_class_name": "RMSNorm", "norm_eps": 1e-5,
    "mlp_class_name": "LLaMAMLP", "parallel_residual": False, "bias": False,
    "rotary_percentage": 1.0, "rope_base": 10000, "rope_adjustments": None, "n_expert": 0,
}  # fmt: skip


def lit_files(directory: Path, former: bool = False, **changes: Any) -> dict[str, F32]:
    """A directory; returns its tensors by Hugging Face's names. former: heads fused by group."""
    random = np.random.default_rng(0)
    hf: dict[str, F32] = {}
    lit: dict[str, F32] = {}

    def made(name: str, own: str, *shape: int) -> None:
        hf[name] = random.standard_normal(shape, dtype=np.float32)
        if own:
            lit[own] = hf[name]

    made("model.embed_tokens.weight", "transformer.wte.weight", 64, 32)
    made("lm_head.weight", "lm_head.weight", 64, 32)
    made("model.norm.weight", "transformer.ln_f.weight", 32)
    for layer in range(2):
        ours, theirs = f"model.layers.{layer}.", f"transformer.h.{layer}."
        for part, rows in (("q", 32), ("k", 16), ("v", 16)):
            made(f"{ours}self_attn.{part}_proj.weight", "", rows, 32)
        q, k, v = (hf[f"{ours}self_attn.{part}_proj.weight"] for part in "qkv")
        if former:
            groups = [(q[:16], k[:8], v[:8]), (q[16:], k[8:], v[8:])]
            lit[f"{theirs}attn.attn.weight"] = np.concatenate([x for g in groups for x in g])
        else:
            lit[f"{theirs}attn.qkv.weight"] = np.concatenate([q, k, v])
        made(f"{ours}self_attn.o_proj.weight", f"{theirs}attn.proj.weight", 32, 32)
        made(f"{ours}mlp.gate_proj.weight", f"{theirs}mlp.fc_1.weight", 48, 32)
        made(f"{ours}mlp.up_proj.weight", f"{theirs}mlp.fc_2.weight", 48, 32)
        made(f"{ours}mlp.down_proj.weight", f"{theirs}mlp.proj.weight", 32, 48)
        made(f"{ours}input_layernorm.weight", f"{theirs}norm_1.weight", 32)
        made(f"{ours}post_attention_layernorm.weight", f"{theirs}norm_2.weight", 32)
    directory.mkdir(exist_ok=True)
    files.write_checkpoint(directory / "lit_model.pth", {"model": lit} if former else lit)
    (directory / "model_config.yaml").write_text(yaml.dump(LIT | changes))
    return hf


@pytest.mark.parametrize("former", [False, True])
def test_litgpt(tmp_path: Path, former: bool) -> None:
    """Tensor by tensor as Hugging Face's directory of the same model."""
    hf = lit_files(tmp_path / "lit", former)
    path = str(tmp_path / "lit" / ("lit_model.pth" if former else ""))
    with open_model(path) as model:
        attention = model.spec.kinds[0].mixer
        assert isinstance(attention, AttentionSpec)
        assert (attention.heads, attention.kv_heads, attention.key_size) == (4, 2, 8)
        names = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj"}
        names |= {"wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj"}
        for part, name in (names | {"w3": "mlp.up_proj"}).items():
            found = whole(model, f"layers.1.{part}")
            assert np.array_equal(found, hf[f"model.layers.1.{name}.weight"]), part
        assert np.array_equal(whole(model, "head"), hf["lm_head.weight"])


def test_litgpt_scaling(tmp_path: Path) -> None:
    given = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    lit_files(tmp_path, rope_adjustments=given | {"original_max_seq_len": 32})
    with open_model(str(tmp_path)) as model:
        assert model.spec.ropes[0].frequencies[-1] == pytest.approx(10000**-0.75 / 8)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mlp_class_name": "GptNeoxMLP"}, "mlp_class_name is 'GptNeoxMLP'"),
        ({"parallel_residual": True}, "parallel_residual is True"),
        ({"rotary_percentage": 0.25}, "rotary_percentage"),
        ({"n_embd": "x"}, "n_embd is 'x'"),
        ({"n_layer": 3}, "transformer.h.2.norm_1.weight is missing"),
        ({"rope_adjustments": {"factor": 2}}, "low_freq_factor is missing"),
        ({"rope_adjustments": {"beta_fast": 2}}, "of this kind"),
    ],
)
def test_litgpt_configurations(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    lit_files(tmp_path, **changes)
    with pytest.raises(ModelError, match=problem):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1", "not valid YAML: while parsing"),
        ("7", "settings by name"),
        ("!!python/object:os.system x", "YAML"),
        ("a: &a [x]\n" + "b: &b [*a, *a]\n" * 30 + "bias: *b", "has an alias"),
        ("bias: &a [*a]", r"not valid YAML: it has an alias \(\*name\); write"),
        ("n_embd: 0x" + "f" * 9000, "n_embd is a number of 36000 bits; at most 64"),
        ("bias: " + "[" * 9000, "not valid YAML|nested"),
    ],
)
def test_litgpt_yaml_is_data(tmp_path: Path, text: str, problem: str) -> None:
    lit_files(tmp_path)
    (tmp_path / "model_config.yaml").write_text(text)
    with pytest.raises(ModelError, match=problem):
        open_model(str(tmp_path))
