"""Writer of a GGUF file of a model's shape with random weights.

Matrices are Q4_0 or F16, or of a type or mix that llama.cpp's quantizer makes of F16, such as
q4_k_m. The SentencePiece vocabulary is made up: for speed, not text. Needs the packages gguf and
llama-cpp-python (compare.py runs it in an environment of its own).
"""

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# hidden, layers, heads, KV heads, head size, feed-forward (of each expert), vocabulary, rope theta,
# tied
SHAPES = {
    # To see that a comparison runs.
    "tiny": (256, 2, 4, 2, 64, 512, 32000, 10000.0, False),
    "tinyllama-1.1b": (2048, 22, 32, 4, 64, 5632, 32000, 10000.0, False),
    "llama-3.2-1b": (2048, 16, 32, 8, 64, 8192, 128256, 500000.0, True),
    "llama-3-8b": (4096, 32, 32, 8, 128, 14336, 128256, 500000.0, False),
    "qwen3-30b-a3b": (2048, 48, 32, 4, 128, 768, 151936, 1000000.0, False),
    # Qwen3-30B-A3B with 6 of its 48 layers.
    "qwen3-30b-a3b-6l": (2048, 6, 32, 4, 128, 768, 151936, 1000000.0, False),
}
# Experts, and those chosen for a token, of a mixture (Qwen3-MoE).
EXPERTS = {"qwen3-30b-a3b": (128, 8), "qwen3-30b-a3b-6l": (128, 8)}


def random_matrix(rng: np.random.Generator, rows: int, columns: int, kind: str) -> np.ndarray:
    """uint8 [rows, columns / 32 * 18] for q40, float16 [rows, columns] for f16."""
    scale = columns**-0.5
    if kind == "f16":
        # A quarter of a million values, repeated: half a gigabyte of normal values takes minutes.
        some = (rng.standard_normal(1 << 18) * scale).astype(np.float16)
        return np.resize(some, (rows, columns))
    blocks = np.empty((rows * columns // 32, 18), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(scale / 4.61).tobytes(), np.uint8)
    blocks[:, 2:] = rng.integers(0, 256, (len(blocks), 16), dtype=np.uint8)
    return blocks.reshape(rows, columns // 32 * 18)


def write(path: Path, shape: str, kind: str) -> None:
    """Write the file; `kind` is q40 or f16, or one of llama.cpp's quantizer."""
    if kind not in ("q40", "f16"):
        whole = path.with_suffix(".f16")
        write(whole, shape, "f16")
        quantize(whole, path, kind)
        whole.unlink()
        return
    hidden, layers, heads, kv_heads, size, ffn, vocab, theta, tied = SHAPES[shape]
    rng = np.random.default_rng(1)
    experts, chosen = EXPERTS.get(shape, (0, 0))
    writer = gguf.GGUFWriter(path, "qwen3moe" if experts else "llama")
    writer.add_name(f"random {shape}")
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    tokens += [f"\u2581w{index}" for index in range(vocab - len(tokens))]
    kinds += [1] * (vocab - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(vocab)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    raw = gguf.GGMLQuantizationType.Q4_0 if kind == "q40" else gguf.GGMLQuantizationType.F16

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, random_matrix(rng, rows, columns, kind), raw_dtype=raw)

    def stack(name: str, rows: int, columns: int) -> None:
        data = random_matrix(rng, experts * rows, columns, kind)
        writer.add_tensor(name, data.reshape(experts, rows, data.shape[1]), raw_dtype=raw)

    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(chosen)
        writer.add_expert_feed_forward_length(ffn)
    matrix("token_embd.weight", vocab, hidden)
    for layer in range(layers):
        at = f"blk.{layer}."
        matrix(at + "attn_q.weight", heads * size, hidden)
        matrix(at + "attn_k.weight", kv_heads * size, hidden)
        matrix(at + "attn_v.weight", kv_heads * size, hidden)
        matrix(at + "attn_output.weight", hidden, heads * size)
        if experts:
            for name in ("attn_q_norm", "attn_k_norm"):
                writer.add_tensor(f"{at}{name}.weight", np.ones(size, np.float32))
            router = rng.standard_normal((experts, hidden)).astype(np.float32) * hidden**-0.5
            writer.add_tensor(at + "ffn_gate_inp.weight", router)
            stack(at + "ffn_gate_exps.weight", ffn, hidden)
            stack(at + "ffn_up_exps.weight", ffn, hidden)
            stack(at + "ffn_down_exps.weight", hidden, ffn)
        else:
            matrix(at + "ffn_gate.weight", ffn, hidden)
            matrix(at + "ffn_up.weight", ffn, hidden)
            matrix(at + "ffn_down.weight", hidden, ffn)
        writer.add_tensor(at + "attn_norm.weight", np.ones(hidden, np.float32))
        writer.add_tensor(at + "ffn_norm.weight", np.ones(hidden, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    if not tied:
        matrix("output.weight", vocab, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, path: Path, kind: str) -> None:
    """Another file's matrices in llama.cpp's types of a name such as q4_k_m."""
    import llama_cpp

    names = {
        name.removeprefix("LLAMA_FTYPE_MOSTLY_").lower(): value
        for name, value in vars(llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_MOSTLY_")
    }
    settings: Any = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = names[kind]
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), settings):
        raise RuntimeError(f"llama.cpp cannot make {kind} of {source}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--weights", default="q40", help="q40, f16, or such as q4_k_m")
    options = parser.parse_args()
    write(options.path, options.shape, options.weights)


if __name__ == "__main__":
    main()
