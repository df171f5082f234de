"""Evaluation of an exported demo model on the held-out stories, and samples.

The figures in README.md come from this script.
"""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack
from pathlib import Path

import data
import torch
from export import BOS, EOS, load_exported, special_id
from model import Llama
from quantize import quantized_activations, quantized_weights
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

PROMPTS = ("Once upon a time", "One day, Lily and Ben went to the park.", "Tom had a red ball.")


def encode_stories(tokenizer: Tokenizer, stories: list[str]) -> list[list[int]]:
    bos, eos = special_id(tokenizer, BOS), special_id(tokenizer, EOS)
    return [
        [bos, *encoding.ids, eos]
        for encoding in tokenizer.encode_batch(stories, add_special_tokens=False)
    ]


@torch.no_grad()
def mean_loss(model: Llama, sequences: list[list[int]]) -> float:
    """Mean cross-entropy per token, each story alone and cut at the longest position."""
    total, count = 0.0, 0
    limit = model.shape.max_position_embeddings
    for sequence in sequences:
        ids = torch.tensor([sequence[: limit + 1]])
        logits = model(ids[:, :-1]).float()
        total += functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count


@torch.no_grad()
def sample(
    model: Llama, tokenizer: Tokenizer, prompt: str, temperature: float, seed: int
) -> tuple[str, bool]:
    """The prompt with its continuation, and whether the model ended it."""
    generator = torch.Generator().manual_seed(seed)
    eos = special_id(tokenizer, EOS)
    ids: list[int] = [
        special_id(tokenizer, BOS),
        *tokenizer.encode(prompt, add_special_tokens=False).ids,
    ]
    while len(ids) < model.shape.max_position_embeddings and ids[-1] != eos:
        logits: Tensor = model(torch.tensor([ids]))[0, -1].float()
        if temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            weights = (logits / temperature).softmax(-1)
            ids.append(int(torch.multinomial(weights, 1, generator=generator)))
    return tokenizer.decode(ids), ids[-1] == eos


def report(model: Llama, sequences: list[list[int]]) -> None:
    """Print loss and perplexity, exact and under each simulated quantization."""
    cases = (("exact", False, False), ("Q4_0 weights", True, False), ("Q4_0 and int8", True, True))
    base = math.nan
    for label, weights, activations in cases:
        with ExitStack() as stack:
            if weights:
                stack.enter_context(quantized_weights(model))
            if activations:
                stack.enter_context(quantized_activations(model))
            loss = mean_loss(model, sequences)
        perplexity = math.exp(loss)
        base = base if weights else perplexity
        change = 100 * (perplexity / base - 1)
        print(f"{label:14} loss {loss:.4f}  perplexity {perplexity:.3f}  change {change:+.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    here = Path(__file__).resolve().parent
    parser.add_argument("--model", type=Path, default=here / "demo")
    parser.add_argument("--text-dir", type=Path, default=data.default_text_dir())
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    model, tokenizer = load_exported(arguments.model)
    stories = data.heldout_stories(arguments.text_dir)
    sequences = encode_stories(tokenizer, stories)
    tokens = sum(len(sequence) - 1 for sequence in sequences)
    print(f"held out: {len(stories)} stories, {tokens} tokens")
    report(model, sequences)
    for prompt in PROMPTS:
        text, ended = sample(model, tokenizer, prompt, arguments.temperature, arguments.seed)
        print(f"\n--- temperature {arguments.temperature}{'' if ended else ', cut off'}\n{text}")


if __name__ == "__main__":
    main()
