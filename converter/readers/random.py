"""Models of a published shape with random weights, generated on demand: `random:SHAPE[:SEED]`.

For measuring speed and memory without a download. A cut is generated alone and has the same bytes
as that part of the whole, so nodes agree although none holds the whole model.
"""

import hashlib
import math

import numpy as np

from hearth import _native
from hearth.converter.errors import ModelError
from hearth.converter.fingerprint import fingerprint
from hearth.converter.hf_config import read_spec
from hearth.converter.model import Model, Span, TokenizerSource
from hearth.converter.spec import ModelSpec
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.converter.weights import Bytes

PREFIX = "random:"
DEFAULT_WEIGHTS = "q4_0"
# Changed when the same shape and seed would give other weights.
_GENERATOR = "random-1"

# Vectors' elements: 1 of norms, 0 of biases and sinks, and these.
_VECTORS = {"decay_rate": -1.0, "conv_q": 0.5, "conv_k": 0.5, "conv_v": 0.5}

_LLAMA_31 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama(sizes: tuple[int, ...], factor: float = 0.0, **more: object) -> dict[str, object]:
    """A Llama 3 config.json; factor: of Llama 3.1's rope scaling."""
    config: dict[str, object] = {"model_type": "llama", "rms_norm_eps": 1e-5}
    config |= {"rope_theta": 500000.0, "max_position_embeddings": 8192}
    config |= dict(zip(_SIZES, sizes, strict=True))
    if factor:
        config |= {"rope_scaling": _LLAMA_31 | {"factor": factor}}
        config |= {"max_position_embeddings": 131072}
    return config | more


_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size",
)  # fmt: skip
# deepseek-ai/DeepSeek-V3 and zai-org/GLM-4.7-Flash, config.json.
_DEEPSEEK_V3: dict[str, object] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "intermediate_size": 18432,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
_GLM_47_FLASH: dict[str, object] = {
    "model_type": "glm4_moe_lite",
    "hidden_size": 2048,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "intermediate_size": 10240,
    "vocab_size": 154880,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
}
# Qwen/Qwen3.6-35B-A3B, the text_config of its config.json.
_QWEN_36_35B: dict[str, object] = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000000.0,
}
# The numbers of each model's published config.json.
SHAPES: dict[str, dict[str, object]] = {
    "tinyllama-1.1b": _llama(
        (2048, 22, 32, 4, 64, 5632, 32000), rope_theta=10000.0, max_position_embeddings=2048
    ),
    "llama-3.2-1b": _llama((2048, 16, 32, 8, 64, 8192, 128256), 32.0, tie_word_embeddings=True),
    "llama-3.2-3b": _llama((3072, 28, 24, 8, 128, 8192, 128256), 32.0, tie_word_embeddings=True),
    "llama-3-8b": _llama((4096, 32, 32, 8, 128, 14336, 128256)),
    "llama-3.1-70b": _llama((8192, 80, 64, 8, 128, 28672, 128256), 8.0),
    "llama-3.1-405b": _llama((16384, 126, 128, 8, 128, 53248, 128256), 8.0),
    "qwen3.6-35b-a3b": _QWEN_36_35B,
    "deepseek-v3": _DEEPSEEK_V3,
    "glm-4.7-flash": _GLM_47_FLASH,
}


def random_spec(shape: str) -> ModelSpec:
    """The spec of one of SHAPES. Raises KeyError for another."""
    return read_spec(SHAPES[shape], shape)[1]


def open_random(source: str, weights: str | None) -> "RandomModel":
    """Open `random:SHAPE[:SEED]`. Raises ModelError for an unknown shape or a bad seed."""
    shape, _, seed = source.removeprefix(PREFIX).partition(":")
    if shape not in SHAPES:
        raise ModelError(f"random shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}")
    if seed and not (seed.isascii() and seed.isdecimal() and int(seed) < 1 << 64):
        raise ModelError(f"random seed {seed!r} is not a whole number of 0 to {(1 << 64) - 1}")
    return RandomModel(random_spec(shape), int(seed or 0), weights)


class RandomModel(Model):
    """A model without files.

    Activations keep about their size from layer to layer: the standard deviation of a matrix is
    1/sqrt(columns), and smaller by sqrt(2 x layers) where it adds to the residual stream."""

    def __init__(self, spec: ModelSpec, seed: int = 0, weights: str | None = None) -> None:
        source = TokenizerSource(
            load=lambda: PlainTokenizer(spec.vocab_size),
            files=dict,
            bos_id=PlainTokenizer.BOS,
            plain=True,
        )
        super().__init__(spec, weights, source)
        self.seed = seed

    def identity(self, name: str) -> bytes:
        self._shape(name)
        return fingerprint([_GENERATOR, repr(self.spec), self.seed, name])

    def stored_type(self, name: str) -> str:
        self._shape(name)
        tensor = self.spec.tensor(name)
        if tensor.vector or tensor.exact:
            return "f32"
        return self.effective_type(name, self._asked(name) or DEFAULT_WEIGHTS)

    def _cut(self, name: str, kind: str, rows: Span, columns: Span) -> Bytes:
        count = columns[1] - columns[0]
        tensor = self.spec.tensor(name)
        if tensor.vector:
            value = _VECTORS.get(tensor.part, float(name.endswith("norm")))
            return np.full((rows[1] - rows[0], count), value, dtype="<f4").view(np.uint8)
        total = tensor.shape[1]
        scale = 1 / math.sqrt(total)
        if tensor.part in ("wo", "w2", "experts_w2"):
            scale /= math.sqrt(2 * self.spec.layers)
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
        return _native.random_slice(
            kind, seed, rows[0], rows[1] - rows[0], columns[0], count, total, scale
        )
