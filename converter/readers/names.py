"""Hearth's tensor names mapped to those of Hugging Face and GGUF."""

_TOP = {
    "embedding": ("model.embed_tokens.weight", "token_embd.weight"),
    "norm": ("model.norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
}
_LAYER = {
    "attn_norm": ("input_layernorm", "attn_norm"),
    "wq": ("self_attn.q_proj", "attn_q"),
    "wk": ("self_attn.k_proj", "attn_k"),
    "wv": ("self_attn.v_proj", "attn_v"),
    "wo": ("self_attn.o_proj", "attn_output"),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm"),
    "w1": ("mlp.gate_proj", "ffn_gate"),
    "w2": ("mlp.down_proj", "ffn_down"),
    "w3": ("mlp.up_proj", "ffn_up"),
}


def huggingface_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name][0]
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{_LAYER[part][0]}.weight"


def gguf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name][1]
    _, layer, part = name.split(".")
    return f"blk.{layer}.{_LAYER[part][1]}.weight"
