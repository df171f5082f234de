"""A Hugging Face Llama `config.json`, to and from a ModelSpec.

Reads the forms of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5
(`rope_parameters`, `dtype`). Refuses settings that would silently compute something else.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hearth.converter.errors import ModelError
from hearth.converter.files import check_pointer
from hearth.converter.spec import ModelSpec, RopeScaling

_MAX_JSON_BYTES = 4 << 20
_MISSING = object()


@dataclass(frozen=True)
class HfConfig:
    """Contents of a config.json and a generation_config.json.

    bos_id, eos_ids: None or empty where the files name none. raw: config.json as read.
    """

    spec: ModelSpec
    bos_id: int | None
    eos_ids: frozenset[int]
    raw: dict[str, Any]


def read_json(path: Path, limit: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes. Raises ModelError otherwise."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise ModelError(f"{path} has {size} bytes; the limit for such a file is {limit}")
        content = path.read_bytes()
        check_pointer(path, content)
        value = json.loads(content)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}; an object is needed")
    return value


def read_config(directory: Path) -> HfConfig:
    """Read the configuration of a Hugging Face directory.

    Raises:
        ModelError: config.json is absent, damaged, or describes a model that Hearth does not
        support.
    """
    path = directory / "config.json"
    raw = read_json(path)
    try:
        spec = _spec(raw, directory.resolve().name)
        bos_id = _ids(raw, "bos_token_id")
        eos_ids = _ids(raw, "eos_token_id")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    generation_path = directory / "generation_config.json"
    if generation_path.is_file():
        generation = read_json(generation_path)
        try:
            eos_ids = eos_ids | _ids(generation, "eos_token_id")
            bos_id = bos_id or _ids(generation, "bos_token_id")
        except ModelError as error:
            raise ModelError(f"{generation_path}: {error}") from error
    return HfConfig(spec, min(bos_id) if bos_id else None, eos_ids, raw)


def write_config(spec: ModelSpec, bos_id: int | None, eos_ids: frozenset[int]) -> dict[str, Any]:
    """The config.json of a spec, in a form that all versions of transformers read."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": bos_id,
        "eos_token_id": _one_or_list(eos_ids),
        "head_dim": spec.head_size,
        "hidden_act": "silu",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "max_position_embeddings": spec.context_size,
        "mlp_bias": False,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tied,
        "vocab_size": spec.vocab_size,
    }
    scaling = spec.rope_scaling
    if scaling is not None:
        config["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            config["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
    return config


def _one_or_list(ids: frozenset[int]) -> int | list[int] | None:
    ordered = sorted(ids)
    return ordered[0] if len(ordered) == 1 else ordered or None


def _spec(raw: dict[str, Any], name: str) -> ModelSpec:
    _check_architecture(raw)
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            raise ModelError(f"{key} is {raw[key]!r}; Hearth runs Llama models without biases")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of one function
        raise ModelError(
            f"hidden_act is {raw['hidden_act']!r}; Hearth runs Llama models with 'silu'"
        )
    for key in ("quantization_config", "quantization"):
        if raw.get(key):
            raise ModelError(
                f"the weights are quantized by another tool ({key}); get the f16 or bf16 model, or "
                "a GGUF file of it"
            )
    hidden_size, heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    if raw.get("head_dim") is None and (heads < 1 or hidden_size % heads):
        raise ModelError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}, and "
            "head_dim is absent"
        )
    head_size = _integer(raw, "head_dim", hidden_size // heads if heads > 0 else 0)
    context_size = _integer(raw, "max_position_embeddings", 2048)
    theta, scaling = _rope(raw, context_size)
    return ModelSpec(
        name=name,
        hidden_size=hidden_size,
        layers=_integer(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=_integer(raw, "num_key_value_heads", heads),
        head_size=head_size,
        ffn_size=_integer(raw, "intermediate_size"),
        vocab_size=_integer(raw, "vocab_size"),
        norm_epsilon=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        rope_factors=_rope_factors(raw),
        context_size=context_size,
        tied=_boolean(raw, "tie_word_embeddings", False),
    )


def _check_architecture(raw: dict[str, Any]) -> None:
    """Refuse other models. As in transformers, model_type decides, and architectures without it."""
    name = raw.get("architectures") or None
    if isinstance(name, list):
        name = name[0]
    kind = raw.get("model_type")
    if name is None and kind is None:
        raise ModelError(
            "neither 'architectures' nor 'model_type' is given; is this the config.json of a "
            "language model?"
        )
    # "LLaMAForCausalLM" is in real files. Heads of other tasks do not make text.
    text = name is None or (isinstance(name, str) and name.lower().endswith("forcausallm"))
    if kind is None:
        text = isinstance(name, str) and name.lower() == "llamaforcausallm"
    if kind not in (None, "llama") or not text:
        other = kind if kind not in (None, "llama") and name in (None, "LlamaForCausalLM") else name
        raise ModelError(
            f"architecture {other!r} is not supported; Hearth runs llama (LlamaForCausalLM)"
        )


def _rope(raw: dict[str, Any], context_size: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling of rotary positions, as transformers 4 and 5 both read them.

    rope_scaling, where it says anything, takes the place of rope_parameters.
    """
    parameters, scaling = (
        _object(raw[key], key) if raw.get(key) is not None else {}
        for key in ("rope_parameters", "rope_scaling")
    )
    used, key = (scaling, "rope_scaling") if scaling else (parameters, "rope_parameters")
    for name, value in used.items():
        if isinstance(value, dict):
            raise ModelError(
                f"{key} has settings of its own for {name!r}; Hearth runs models where all layers "
                "have the same"
            )
    partial = used.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ModelError(f"partial_rotary_factor is {partial!r}; Hearth rotates whole heads")
    theta = _number(used if "rope_theta" in used else raw, "rope_theta", 10000.0)
    dropped = _number(parameters, "rope_theta", theta)
    if dropped != theta:
        raise ModelError(
            f"rope_theta is {dropped:g} in rope_parameters, which rope_scaling replaces, and so "
            f"{theta:g} would count; put the right one into rope_scaling"
        )
    # At the top of the file it counts for transformers 5, in the object for transformers 4.
    original = "original_max_position_embeddings"
    if raw.get(original) is not None and used.get(original, raw[original]) != raw[original]:
        raise ModelError(
            f"{original} is {raw[original]!r}, but {used[original]!r} in {key}; remove one"
        )
    return theta, _scaling(used, _integer(raw, original, context_size))


def _scaling(scaling: dict[str, Any], original_context: int) -> RopeScaling | None:
    """original_context: where `scaling` does not say."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", _number(scaling, "factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            _number(scaling, "factor"),
            _number(scaling, "low_freq_factor"),
            _number(scaling, "high_freq_factor"),
            _integer(scaling, "original_max_position_embeddings", original_context),
        )
    raise ModelError(
        f"rope scaling {kind!r} is not supported; Hearth reads default, linear, llama3"
    )


def _rope_factors(raw: dict[str, Any]) -> tuple[float, ...] | None:
    """Hearth's own key, for models whose GGUF file lists a factor for every frequency."""
    hearth = raw.get("hearth")
    values = hearth.get("rope_factors") if isinstance(hearth, dict) else None
    if values is None:
        return None
    if not isinstance(values, list):
        raise ModelError("hearth.rope_factors is not a list of numbers")
    return tuple(_checked_number(value, "hearth.rope_factors") for value in values)


def _ids(raw: dict[str, Any], key: str) -> frozenset[int]:
    value = raw.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < 1 << 31:
            raise ModelError(f"{key} is {value!r}; it must be a token id or a list of them")
    return frozenset(values)


def _object(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(f"{key} is {value!r}; an object is needed")
    return value


def _integer(raw: dict[str, Any], key: str, default: Any = _MISSING) -> int:
    value = raw.get(key)
    if value is None:
        if default is _MISSING:
            raise ModelError(f"{key} is missing")
        value = default
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"{key} is {value!r}; a whole number is needed")
    return value


def _number(raw: dict[str, Any], key: str, default: Any = _MISSING) -> float:
    value = raw.get(key)
    if value is None:
        if default is _MISSING:
            raise ModelError(f"{key} is missing")
        value = default
    return _checked_number(value, key)


def _checked_number(value: Any, key: str) -> float:
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number):
        raise ModelError(f"{key} is {value!r}; a number is needed")
    return number


def _boolean(raw: dict[str, Any], key: str, default: bool) -> bool:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"{key} is {value!r}; true or false is needed")
    return value
