"""LitGPT's directories: `lit_model.pth`, `model_config.yaml`, and the tokenizer of Hugging Face."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hearth.converter.blocks import AttentionSpec
from hearth.converter.errors import ModelError
from hearth.converter.families.base import Files, FileTensor, Names, Recipe, find
from hearth.converter.families.settings import Settings
from hearth.converter.files import OpenFile
from hearth.converter.hf_config import read_spec, token_ids
from hearth.converter.model import FileModel, TokenizerSource
from hearth.converter.readers.torch_checkpoint import Tensor, read_checkpoint
from hearth.converter.shown import shown
from hearth.converter.spec import ModelSpec
from hearth.converter.stored import Indices, PickedRows, Stored
from hearth.converter.tensors import TensorSpec
from hearth.converter.tokenizers import load_tokenizer, tokenizer_files

CONFIG, WEIGHTS = "model_config.yaml", "lit_model.pth"
_MAX_CONFIG = 1 << 18
_READABLE = ("f32", "f16", "bf16")
# Settings of its configuration with the only value that Hearth runs.
_ONLY = {
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "parallel_residual": False,
    "bias": False,
    "lm_head_bias": False,
    "scale_embeddings": False,
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "norm_1": True,
    "norm_2": True,
    "norm_qk_type": "default",
    "rotary_percentage": 1.0,
    "rope_interleave": False,
    "sliding_window_size": None,
    "attention_scores_scalar": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "latent_attention": None,
    "rope_local_base_freq": None,
    "n_expert": 0,
}
_SIZES = {
    "hidden_size": "n_embd",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "block_size",
}
_LAYER = "transformer.h.{layer}."


def open_litgpt(directory: Path, weights: str | None) -> FileModel:
    """Open a directory. Raises ModelError where it is damaged or of a kind that does not run."""
    settings = Settings(_read_yaml(directory / CONFIG))
    file = OpenFile(directory / WEIGHTS)
    try:
        entries = _entries(file)
        head, embedding = entries.get("lm_head.weight"), entries.get("transformer.wte.weight")
        tied = head is not None and embedding is not None and head.offset == embedding.offset
        try:
            spec = _spec(settings, tied, directory.resolve().name)
        except ModelError as error:
            raise ModelError(f"{directory / CONFIG}: {error}") from error
        tensors = _match(file.path, spec, entries)
        bos_id, eos_ids = token_ids(directory, {})
    except BaseException:
        file.close()
        raise
    source = TokenizerSource(
        load=lambda: load_tokenizer(directory, bos_id, eos_ids),
        files=lambda: dict(tokenizer_files(directory)),
        bos_id=bos_id,
        eos_ids=eos_ids,
    )
    return FileModel(spec, weights, tensors, [file], source)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Plain(yaml.SafeLoader):
        """A loader of values that are written out.

        A few lines of aliases describe a value of any size, or one that holds itself.
        """

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias (*name); write its value out")
            return super().compose_node(parent, index)

    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ModelError(f"{path} has more than {_MAX_CONFIG} bytes")
        value = yaml.load(path.read_text(encoding="utf-8"), Plain)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid YAML: {str(error)[:300]}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}; settings by name are needed")
    return value


def _spec(settings: Settings, tied: bool, name: str) -> ModelSpec:
    """The shape, by the configuration of Hugging Face that says the same."""
    for key, only in _ONLY.items():
        value = settings.get(key, only)
        if value != only:
            raise ModelError(f"{key} is {shown(value)}; Hearth runs LitGPT models with {only}")
    config: dict[str, Any] = {key: settings.integer(own) for key, own in _SIZES.items()}
    heads = config["num_attention_heads"]
    config |= {
        "model_type": "llama",
        "num_key_value_heads": settings.integer("n_query_groups", heads),
        "head_dim": settings.integer("head_size", config["hidden_size"] // max(heads, 1)),
        "vocab_size": settings.integer("padded_vocab_size"),
        "rms_norm_eps": settings.number("norm_eps", 1e-5),
        "rope_theta": settings.number("rope_base", 10000.0),
        "rope_scaling": _scaling(settings),
        "tie_word_embeddings": tied,
    }
    if settings.boolean("norm_qk", False):
        config |= {"model_type": "qwen3", "attention_bias": False}
    elif settings.boolean("attn_bias", False):
        config["model_type"] = "qwen2"
    return read_spec(config, name)[1]


def _scaling(settings: Settings) -> dict[str, Any] | None:
    condensed = settings.number("rope_condense_ratio", 1)
    given = settings.section("rope_adjustments")
    if not given.values:
        return None if condensed == 1 else {"rope_type": "linear", "factor": condensed}
    if condensed != 1 or "beta_fast" in given or "beta_slow" in given:
        raise ModelError("rope_adjustments of this kind are not supported; Hearth reads Llama 3's")
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": given.number("factor")}
    scaling["low_freq_factor"] = given.number("low_freq_factor")
    scaling["high_freq_factor"] = given.number("high_freq_factor")
    scaling["original_max_position_embeddings"] = given.integer("original_max_seq_len")
    return scaling


def _entries(file: OpenFile) -> dict[str, FileTensor]:
    value = read_checkpoint(file)
    state = value.get("model", value) if isinstance(value, dict) else {}
    return {
        name: FileTensor(file, tensor.offset, tensor.kind, tensor.shape)
        for name, tensor in (state.items() if isinstance(state, dict) else ())
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _part(place: int, ending: str) -> Recipe:
    """Queries, keys or values (place 0, 1, 2), which one tensor holds.

    Today one below the other; in older files those of each KV head are together.
    """

    def recipe(files: Files, spec: ModelSpec, tensor: TensorSpec) -> Stored:
        attention = spec.kinds[spec.kind_of_layer[tensor.layer]].mixer
        assert isinstance(attention, AttentionSpec)
        prefix = f"transformer.h.{tensor.layer}.attn."
        former = f"{prefix}attn.{ending}" in files
        name = f"{prefix}{'attn' if former else 'qkv'}.{ending}"
        rows = (attention.heads + 2 * attention.kv_heads) * attention.key_size
        stored = (
            files.vector(name, rows) if tensor.vector else files.matrix(name, rows, tensor.shape[1])
        )
        return PickedRows(stored, _rows(attention, place, former))

    return recipe


def _rows(attention: AttentionSpec, place: int, former: bool) -> Indices:
    size, groups, each = attention.key_size, attention.kv_heads, attention.group
    if not former:
        first = (0, attention.heads, attention.heads + groups)[place] * size
        return np.arange(first, first + (attention.heads if place == 0 else groups) * size)
    first = (0, each, each + 1)[place] * size
    count = (each if place == 0 else 1) * size
    heads = np.arange(groups)[:, None] * (each + 2) * size
    return (heads + first + np.arange(count)).reshape(-1)


_NAMES: Names = {
    "embedding": "transformer.wte.weight",
    "norm": "transformer.ln_f.weight",
    "head": "lm_head.weight",
    "attn_norm": _LAYER + "norm_1.weight",
    "ffn_norm": _LAYER + "norm_2.weight",
    "q_norm": _LAYER + "attn.norm_q.weight",
    "k_norm": _LAYER + "attn.norm_k.weight",
    "wo": _LAYER + "attn.proj.weight",
    "w1": _LAYER + "mlp.fc_1.weight",
    "w2": _LAYER + "mlp.proj.weight",
    "w3": _LAYER + "mlp.fc_2.weight",
    **{
        f"{kind}{letter}": _part(place, ending)
        for kind, ending in (("w", "weight"), ("b", "bias"))
        for place, letter in enumerate("qkv")
    },
}


def _match(path: Path, spec: ModelSpec, entries: Mapping[str, FileTensor]) -> dict[str, Stored]:
    files = Files(entries, str(path), f"{CONFIG} asks for {spec.layers} layers", _READABLE)
    if spec.tied:
        files.ignore(["lm_head.weight"])
    wanted = (spec.tensor(name) for name in spec.tensor_names())
    tensors = {each.name: find(files, spec, each, _NAMES[each.part]) for each in wanted}
    left = files.left()
    if left:
        raise ModelError(
            f"{path}: tensor {left[0]} does not belong to a model of {spec.layers} layers "
            f"({len(left)} such tensors); the result would be wrong without it"
        )
    return tensors
