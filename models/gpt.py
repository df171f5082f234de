"""GPT-2 in plain PyTorch, with Hugging Face's names of weights.

For training; it has no KV cache and generates slowly. Its matrices lie as PyTorch's, and are turned
where a folder for Hugging Face is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class GptShape:
    """Sizes of the model, by the names of its config.json."""

    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_positions: int


class Attention(nn.Module):
    def __init__(self, shape: GptShape, dropout: float) -> None:
        super().__init__()
        self.heads = shape.n_head
        self.dropout = dropout
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, hidden = x.shape
        size = hidden // self.heads
        q, k, v = (
            part.view(rows, length, self.heads, size).transpose(1, 2)
            for part in self.c_attn(x).split(hidden, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        y = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(rows, length, hidden))
        return out


class MLP(nn.Module):
    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Layer(nn.Module):
    def __init__(self, shape: GptShape, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd)
        self.attn = Attention(shape, dropout)
        self.ln_2 = nn.LayerNorm(shape.n_embd)
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.ln_1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.ln_2(x)))
        return out


class Gpt(nn.Module):
    """Token ids in, logits out. The head is the embedding table."""

    def __init__(self, shape: GptShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.n_positions, shape.n_embd)
        self.h = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd)
        self.dropout = nn.Dropout(dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Smaller where a layer writes to the residual stream (GPT-2's paper, section 2.3).
                writes = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / ((2 * shape.n_layer) ** 0.5 if writes else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.wte(ids) + self.wpe(places))
        for layer in self.h:
            x = layer(x)
        return functional.linear(self.ln_f(x), self.wte.weight)
