"""Training of the demo model from scratch on a CPU, within a budget of minutes.

    python models/train_demo.py --minutes 70
    python models/train_demo.py --minutes 70 --resume    # continue after an interruption
    python models/train_demo.py --export    # write models/demo from the last checkpoint

Not a general trainer: one shape, one mixture of texts, one schedule. The schedule follows the
clock, not the number of steps, so a run also ends in time on a busy machine.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import data
import torch
from evaluate import encode_stories, mean_loss
from export import BOS, EOS, export, special_id, train_tokenizer
from model import Llama, Shape
from quantize import quantized_weights
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
IGNORED = -100  # The target that cross_entropy ignores.
WARMUP = 0.02
QUANTIZED_FROM, QUANTIZED_SHARE = 0.75, 0.5
EMA_DECAY = 0.995


def pack(sequences: list[list[int]], length: int) -> list[list[list[int]]]:
    """Pack whole sequences into rows of at most `length` tokens."""
    rows: list[list[list[int]]] = []
    room: list[int] = []
    for sequence in sequences:
        fits = [i for i in range(max(0, len(rows) - 40), len(rows)) if room[i] >= len(sequence)]
        if fits:
            best = min(fits, key=room.__getitem__)
        else:
            best = len(rows)
            rows.append([])
            room.append(length)
        rows[best].append(sequence)
        room[best] -= len(sequence)
    return rows


class Batches:
    """Endless batches: stories with new names every epoch, and some passages of older tales."""

    def __init__(self, corpus: data.Corpus, tokenizer: Tokenizer, length: int, rows: int) -> None:
        self.corpus, self.tokenizer, self.length, self.rows = corpus, tokenizer, length, rows
        self.passages = [encoding.ids for encoding in tokenizer.encode_batch(corpus.passages)]
        self.padding = special_id(tokenizer, EOS)
        self.generator = random.Random()
        self.epoch = 0
        self.passage_share = 0.0
        self.pending: list[list[list[int]]] = []

    def _fill(self) -> None:
        self.generator.seed(self.epoch)
        self.epoch += 1
        stories = [data.rename(story, self.generator) for story in self.corpus.train]
        sequences = encode_stories(self.tokenizer, stories)
        self.generator.shuffle(sequences)
        size = self.length + 1
        rows = pack([sequence[:size] for sequence in sequences], size)
        wanted = int(len(rows) * self.passage_share)
        # Passages carry neither BOS nor EOS: a text that begins with BOS is a story.
        extra = self.generator.choices(self.passages, k=2 * wanted)
        rows += pack([sequence[: size // 2] for sequence in extra], size)
        self.generator.shuffle(rows)
        self.pending = rows

    def __call__(self, passage_share: float) -> tuple[Tensor, Tensor]:
        self.passage_share = passage_share
        while len(self.pending) < self.rows:
            self._fill()
        taken, self.pending = self.pending[: self.rows], self.pending[self.rows :]
        ids = torch.full((self.rows, self.length + 1), self.padding)
        targets = torch.full((self.rows, self.length + 1), IGNORED)
        for row, sequences in enumerate(taken):
            tokens = torch.tensor([token for sequence in sequences for token in sequence])
            ids[row, : len(tokens)] = tokens
            targets[row, : len(tokens)] = tokens
        targets[ids == special_id(self.tokenizer, BOS)] = IGNORED
        return ids[:, :-1].contiguous(), targets[:, 1:].contiguous()


def learning_rate(progress: float, peak: float) -> float:
    if progress < WARMUP:
        return peak * max(progress / WARMUP, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
    return peak * (0.02 + 0.98 * cosine)


def passage_share(progress: float) -> float:
    """Rows of older tales per row of stories: more at first, for their vocabulary."""
    return max(0.02, 0.3 * (1 - 2 * progress))


def optimizer_for(model: Llama, decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


class Trainer:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.work: Path = arguments.work_dir
        self.work.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.work / "checkpoint.pt"
        self.corpus = data.load(arguments.text_dir)
        shape = Shape()
        tokenizer_file = self.work / "tokenizer.json"
        going_on = arguments.resume or arguments.export
        if not (going_on and tokenizer_file.exists()):
            fresh = train_tokenizer(self.corpus.train, self.corpus.passages, shape.vocab_size)
            fresh.save(str(tokenizer_file))
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        torch.manual_seed(arguments.seed)
        random.seed(arguments.seed)
        self.model = Llama(shape, arguments.dropout)
        self.average = Llama(shape).eval()
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = optimizer_for(self.model, arguments.weight_decay)
        self.step, self.elapsed, self.epoch = 0, 0.0, 0
        if going_on:
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed, self.epoch = state["step"], state["elapsed"], state["epoch"]
        torch.manual_seed(self.arguments.seed + self.step)

    def _save(self) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "epoch": self.epoch,
        }
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for average, parameter in pairs:
            average.lerp_(parameter, 1 - decay)

    def _train_step(self, ids: Tensor, targets: Tensor, progress: float) -> float:
        rate = learning_rate(progress, self.arguments.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        quantize = progress > QUANTIZED_FROM and random.random() < QUANTIZED_SHARE
        with quantized_weights(self.model) if quantize else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=self.arguments.bf16):
                logits = self.forward(ids)
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()
        self.step += 1
        return loss.item()

    def export(self) -> None:
        export(self.average, self.tokenizer, self.arguments.output)

    def _ticks(self) -> Iterator[float]:
        """The time used so far in seconds, until the budget is spent."""
        budget = 60 * self.arguments.minutes
        start = time.monotonic() - self.elapsed
        while self.elapsed < budget:
            yield self.elapsed / budget
            self.elapsed = time.monotonic() - start

    def run(self) -> None:
        self.forward = torch.compile(self.model) if self.arguments.compile else self.model
        batches = Batches(
            self.corpus,
            self.tokenizer,
            self.model.shape.max_position_embeddings,
            self.arguments.rows,
        )
        batches.epoch = self.epoch
        development = encode_stories(self.tokenizer, self.corpus.development)
        characters = sum(map(len, self.corpus.train))
        print(f"{len(self.corpus.train)} stories, {characters} characters", flush=True)
        evaluated, saved, recent = self.elapsed, self.elapsed, math.nan
        for progress in self._ticks():
            self.model.train()
            loss = self._train_step(*batches(passage_share(progress)), progress)
            recent = loss if math.isnan(recent) else 0.98 * recent + 0.02 * loss
            self.epoch = batches.epoch
            if self.step % 20 == 0:
                print(
                    f"step {self.step} epoch {self.epoch} minute {self.elapsed / 60:.1f} "
                    f"loss {recent:.4f}",
                    flush=True,
                )
            if self.elapsed - evaluated > 60 * self.arguments.evaluate_every:
                evaluated = self.elapsed
                exact = mean_loss(self.average, development)
                with quantized_weights(self.average):
                    rounded = mean_loss(self.average, development)
                print(f"development loss {exact:.4f}, Q4_0 {rounded:.4f}", flush=True)
            if self.elapsed - saved > 60 * self.arguments.save_every:
                saved = self.elapsed
                self._save()
                self.export()
        self._save()
        self.export()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=70.0, help="wall-clock budget")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--export", action="store_true", help="only write the model folder")
    parser.add_argument("--text-dir", type=Path, default=data.default_text_dir())
    parser.add_argument("--work-dir", type=Path, default=HERE / "build", help="checkpoints")
    parser.add_argument("--output", type=Path, default=HERE / "demo", help="the model folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=8, help="rows of 512 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--evaluate-every", type=float, default=4.0, help="minutes")
    parser.add_argument("--save-every", type=float, default=3.0, help="minutes")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    trainer = Trainer(arguments)
    if arguments.export:
        trainer.export()
    else:
        trainer.run()


if __name__ == "__main__":
    main()
