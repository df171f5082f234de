"""Export of the demo model as a Hugging Face folder: weights in f16, configuration, tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from model import Llama, Shape
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<|bos|>", "<|eos|>"


def train_tokenizer(stories: list[str], passages: list[str], size: int) -> Tokenizer:
    """Train a byte-level BPE: any UTF-8 text has tokens, and no merge crosses a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(BOS, special=True), AddedToken(EOS, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A tenth of the tales: the vocabulary is for the stories.
    tokenizer.train_from_iterator([*stories, *passages[::10]], trainer)
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no {token}")
    return number


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder; the weights file appears complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    bos, eos = special_id(tokenizer, BOS), special_id(tokenizer, EOS)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(model.shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float16",
    }
    write_json(folder / "config.json", config)
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    write_json(
        folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, **sampling}
    )
    special = {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True, "add_eos_token": False}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.shape.max_position_embeddings,
        },
    )
    # On a copy: training encodes texts without BOS. Without this, readers that follow
    # tokenizer.json alone put none before a prompt.
    exported = Tokenizer.from_str(tokenizer.to_str())
    exported.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    exported.save(str(folder / "tokenizer.json"))
    tensors = {
        f"model.{name}": parameter.detach().to(torch.float16).contiguous()
        for name, parameter in model.named_parameters()
    }
    write_weights(folder, tensors)


def write_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write model.safetensors, which appears complete or not at all."""
    partial = folder / "model.safetensors.partial"
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # The library makes it private.
    partial.replace(folder / "model.safetensors")


def load_exported(folder: Path) -> tuple[Llama, Tokenizer]:
    """Read the exported folder back, in f32."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(**{name: config[name] for name in asdict(Shape())})
    model = Llama(shape)
    tensors = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("model."): value.float() for name, value in tensors.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or missing != ["lm_head.weight"]:
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
