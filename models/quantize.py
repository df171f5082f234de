"""Simulated quantization: weights rounded as in Q4_0, activations as int8 in blocks of 32.

Values are rounded and kept in floating point; no bits are packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BLOCK = 32


def round_q4(weight: Tensor) -> Tensor:
    """Round to the values of Q4_0:

    the scale of a block is its element of largest magnitude over -8.
    """
    blocks = weight.reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    q = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return (q * scale.half().float()).view_as(weight)


def round_int8(x: Tensor) -> Tensor:
    """Round activations as the engine does: int8 with one scale per 32 values."""
    blocks = x.float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return ((blocks * inverse).round() * scale.half().float()).view_as(x)


@contextmanager
def quantized_weights(model: nn.Module) -> Iterator[None]:
    """Run forward and backward on rounded weights; the optimizer then updates the exact ones.

    Swapping the data in place is a straight-through estimator that leaves the graph unchanged.
    """
    matrices = [p for p in model.parameters() if p.dim() == 2]
    exact = [p.detach().clone() for p in matrices]
    with torch.no_grad():
        for parameter in matrices:
            parameter.copy_(round_q4(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(matrices, exact, strict=True):
                parameter.copy_(values)


@contextmanager
def quantized_activations(model: nn.Module) -> Iterator[None]:
    """Round the input of every linear layer, the head included."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: (round_int8(inputs[0]),))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
