"""Configurations of DeepSeek-V2, V3 and GLM-4.7-Flash: their shapes, and what is refused."""

import math
from typing import Any

import pytest

from hearth.converter.blocks import LatentAttentionSpec
from hearth.converter.errors import ModelError
from hearth.converter.families import family_of_gguf
from hearth.converter.families.base import GgufFacts
from hearth.converter.families.settings import GgufSettings
from hearth.converter.hf_config import read_spec
from hearth.converter.spec import ModelSpec
from hearth.root.planning.layout import Layout
from hearth.root.planning.planner import make_plan, most_nodes

V2: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 96,
    "vocab_size": 128,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "topk_method": "greedy",
}
V3 = V2 | {
    "model_type": "deepseek_v3",
    "q_lora_rank": 24,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "noaux_tc",
}
GLM = V3 | {"model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1}
GGUF: dict[str, Any] = {
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 6,
    "attention.kv_lora_rank": 32,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 12,
    "rope.dimension_count": 8,
    "expert_count": 8,
    "expert_used_count": 3,
    "expert_feed_forward_length": 40,
    "expert_shared_count": 1,
}


def read(config: dict[str, Any]) -> ModelSpec:
    return read_spec(config, "model")[1]


def read_gguf(metadata: dict[str, Any]) -> ModelSpec:
    family = family_of_gguf("deepseek2")
    assert family.gguf is not None
    values = {f"deepseek2.{key}": value for key, value in metadata.items()}
    facts = GgufFacts(128, {}, lambda name: False)
    return family.gguf(GgufSettings(values, "deepseek2."), "model", facts)


def test_layers_without_experts_come_first() -> None:
    spec = read(V2)
    assert spec.kind_of_layer == (0, 1, 1, 1)
    dense, sparse = spec.kinds
    assert dense.experts is None and dense.feed_forward is not None
    assert dense.feed_forward.size == 96
    assert sparse.experts is not None and sparse.feed_forward is not None
    assert (sparse.feed_forward.size, sparse.experts.scores) == (80, "softmax")
    assert not sparse.experts.normalize
    assert sparse.mixer == LatentAttentionSpec(6, 0, 32, 16, 8, 12, 1 / math.sqrt(24), 0)


def test_the_router_of_v3() -> None:
    experts = read(V3).kinds[1].experts
    assert experts is not None
    assert (experts.scores, experts.groups, experts.used_groups) == ("sigmoid", 4, 2)
    assert experts.choice_bias and experts.normalize


def test_yarn_scales_scores_not_angles() -> None:
    """With mscale and mscale_all_dim alike, cos and sin stay, and scores have their square."""
    scaling = {
        "type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    }
    spec = read(V2 | {"rope_scaling": scaling, "rope_theta": 10000.0})
    assert spec.ropes[0].magnitude == 1.0
    # 0.1 * 0.707 * ln 40 + 1, squared, over the root of 24.
    mixer = spec.kinds[0].mixer
    assert isinstance(mixer, LatentAttentionSpec)
    assert mixer.scale == pytest.approx(1.2608037**2 / 24**0.5, rel=1e-6)


def test_glm_lists_its_layers() -> None:
    assert read(GLM).kind_of_layer == (0, 1, 1, 1)
    kinds = ["sparse", "dense", "sparse", "dense"]
    assert read(GLM | {"mlp_layer_types": kinds}).kind_of_layer == (1, 0, 1, 0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_ranks_share_the_latent(ranks: int) -> None:
    """Every rank holds the latent's products whole and some of the heads."""
    spec = read(V3)
    assert most_nodes(spec) == 6
    plan = make_plan(spec, lambda _: "f32", Layout((ranks,)))
    for part in ("wkv_a", "wq_a", "kv_a_norm"):
        held = [s for node in plan.nodes for s in node.slices if s.name == f"layers.1.{part}"]
        assert [each.rows for each in held] == [(0, held[0].shape[0])] * ranks
    heads = [s for node in plan.nodes for s in node.slices if s.name == "layers.1.wk_b"]
    assert sum(each.shape[0] for each in heads) == 6 * 32
    for node in plan.nodes:
        assert node.kv_page_bytes(spec, "f16", 16) == 4 * 16 * (32 + 8) * 2
    noted = any("holds the whole KV cache of latent attention" in each for each in plan.notes)
    assert noted == (ranks > 1)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (V2 | {"topk_method": "group_limited_greedy"}, "topk_method is 'group_limited_greedy'"),
        (V2 | {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; .* softmax scores"),
        (V3 | {"scoring_func": "softmax"}, "scoring_func is 'softmax'; .* sigmoid scores"),
        (V3 | {"topk_method": "greedy"}, "topk_method is 'greedy'; .*DeepSeek-V3"),
        (GLM | {"scoring_func": "tanh"}, "scoring_func is 'tanh'"),
        (V2 | {"attention_bias": True}, "attention_bias is True"),
        (V3 | {"rope_interleave": False}, "rope_interleave is False"),
        (V3 | {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        (V3 | {"n_group": 3}, "2 of 3 groups of 8 experts"),
        (V3 | {"num_experts_per_tok": 5}, "5 of 8 experts"),
        (V3 | {"kv_lora_rank": 0}, "latent_size is 0"),
        (V3 | {"kv_lora_rank": 1 << 20}, "latent_size is 1048576"),
        (V3 | {"q_lora_rank": -1}, "latent_size is -1"),
        (V3 | {"qk_nope_head_dim": 0}, "head_size is 0"),
        (V3 | {"qk_rope_head_dim": 7}, "7 elements need an even number"),
        (V3 | {"v_head_dim": 0}, "head_size is 0"),
        (V3 | {"num_attention_heads": 0}, "heads is 0"),
        (V3 | {"num_hidden_layers": 10**9}, "layers is 1000000000"),
        (V3 | {"hidden_act": "mish"}, "hidden_act is 'mish'"),
        (GLM | {"mlp_layer_types": ["dense"]}, "mlp_layer_types has 1 texts for 4 layers"),
    ],
)
def test_numbers_that_cannot_be(config: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        read(config)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"attention.key_length_mla": 8}, "head_size is 0"),
        ({"attention.key_length_mla": 4}, "head_size is -4"),
        ({"attention.key_length_mla": 0}, "head_size is 0"),
        ({"expert_gating_func": 3}, "expert_gating_func is 3"),
        ({"attention.kv_lora_rank": 5000}, "latent_size is 5000"),
        ({"block_count": 0}, "layers is 0"),
    ],
)
def test_metadata_that_cannot_be(metadata: dict[str, Any], text: str) -> None:
    read_gguf(GGUF)
    with pytest.raises(ModelError, match=text):
        read_gguf(GGUF | metadata)
