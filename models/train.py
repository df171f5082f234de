"""Training of a small GPT or Llama on a text file, and its folder for Hearth.

    python models/train.py --text shakespeare.txt --out build/shakespeare
    hearth generate build/shakespeare --prompt "ROMEO:"

    python models/train.py --text book.txt --kind llama --tokens bpe --out build/book --steps 2000
    python models/train.py --out build/book --resume --steps 4000    # goes on where it stopped

The folder holds the model as Hugging Face stores it (f32), its vocabulary, `loss.svg`, and
`checkpoint.pt`, from which training goes on. A run that is interrupted and resumed gives the same
weights as one that is not: every step draws its rows and its dropout by its own number.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from export import write_json, write_weights
from gpt import Gpt, GptShape
from model import Llama, Shape
from plot import loss_plot
from torch import Tensor
from torch.nn import functional
from vocabulary import Vocabulary, load_vocabulary, make_vocabulary

WARMUP_STEPS = 20
# A tenth of the text is held out; the loss on it is an average of so many batches.
HELD_OUT, HELD_OUT_BATCHES = 0.1, 8
# What decides the weights: stored with them, and kept by --resume.
STORED = (
    "kind", "tokens", "vocabulary", "layers", "heads", "hidden", "context", "rows",
    "learning_rate", "weight_decay", "dropout", "seed", "text",
)  # fmt: skip


def make_model(arguments: argparse.Namespace, vocab_size: int) -> Gpt | Llama:
    """A model with random weights."""
    hidden, heads = arguments.hidden, arguments.heads
    if hidden % heads or (hidden // heads) % 2:
        raise SystemExit(f"--hidden {hidden} does not divide into {heads} heads of an even size")
    if arguments.kind == "gpt":
        sizes = (vocab_size, hidden, arguments.layers, heads, arguments.context)
        return Gpt(GptShape(*sizes), arguments.dropout)
    shape = Shape(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=-(-8 * hidden // 3 // 32) * 32,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=arguments.context,
    )
    return Llama(shape, arguments.dropout)


def export_model(model: Gpt | Llama, vocabulary: Vocabulary, folder: Path) -> None:
    """Write the folder that Hearth and transformers read."""
    common = {"bos_token_id": None, "eos_token_id": None, "torch_dtype": "float32"}
    common |= {"tie_word_embeddings": True}
    named = dict(model.named_parameters())
    if isinstance(model, Gpt):
        kind = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
        kind |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
        # GPT-2's matrices are stored [inputs, outputs], but for the embeddings.
        tensors = {
            f"transformer.{name}": value.t()
            if value.dim() == 2 and not name.startswith(("wte", "wpe"))
            else value
            for name, value in named.items()
        }
    else:
        kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
        kind |= {"attention_bias": False, "mlp_bias": False}
        tensors = {f"model.{name}": value for name, value in named.items()}
    write_json(folder / "config.json", {**kind, **asdict(model.shape), **common})
    write_weights(folder, {name: value.detach().float() for name, value in tensors.items()})
    vocabulary.save(folder)


class Training:
    """A model on its way: weights, optimizer, the number of steps done and the losses seen."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder: Path = arguments.out
        self.checkpoint = self.folder / "checkpoint.pt"
        stored = self._stored(arguments)
        text = "".join(Path(name).read_text(encoding="utf-8") for name in arguments.text)
        if stored is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.vocabulary = make_vocabulary(arguments.tokens, text, arguments.vocabulary)
        else:
            self.vocabulary = load_vocabulary(self.folder)
        self.arguments = arguments
        ids = torch.tensor(self.vocabulary.encode(text))
        cut = int(len(ids) * (1 - HELD_OUT))
        self.ids, self.held_out = ids[:cut], ids[cut:]
        if len(self.held_out) <= arguments.context:
            raise SystemExit(
                f"the text has {len(ids)} tokens; with --context {arguments.context} it takes "
                f"{math.ceil((arguments.context + 1) / HELD_OUT)} or more"
            )
        torch.manual_seed(arguments.seed)
        self.model = make_model(arguments, self.vocabulary.size)
        self.optimizer = self._optimizer()
        self.step = 0
        self.losses: list[tuple[int, float]] = []
        self.held_out_losses: list[tuple[int, float]] = []
        if stored is not None:
            self.model.load_state_dict(stored["model"])
            self.optimizer.load_state_dict(stored["optimizer"])
            self.step = stored["step"]
            self.losses, self.held_out_losses = stored["losses"], stored["held_out_losses"]

    def _stored(self, arguments: argparse.Namespace) -> dict[str, Any] | None:
        """The checkpoint of --resume, whose settings replace those of the command line."""
        if not arguments.resume:
            if arguments.text is None:
                raise SystemExit("--text FILE is missing")
            if self.checkpoint.exists():
                raise SystemExit(f"{self.checkpoint} exists: give --resume, or another --out")
            return None
        stored: dict[str, Any] = torch.load(self.checkpoint, weights_only=True)
        for name, value in stored["settings"].items():
            setattr(arguments, name, value)
        return stored

    def _optimizer(self) -> torch.optim.AdamW:
        parameters = list(self.model.parameters())
        decay = self.arguments.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() == 2], "weight_decay": decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.arguments.learning_rate, betas=(0.9, 0.99))

    def _rows(self, ids: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Random rows of a text, and for each place the token after it: [rows, context] both."""
        context = self.arguments.context
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(ids) - context, (self.arguments.rows,), generator=generator)
        rows = torch.stack([ids[start : start + context + 1] for start in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def _loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(ids).flatten(0, 1), targets.flatten())

    def train_step(self) -> float:
        """One step of the optimizer; its loss."""
        seed = self.arguments.seed * 1_000_003 + self.step
        torch.manual_seed(seed)  # of dropout
        self.model.train()
        rate = self.arguments.learning_rate * self._warmth()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(*self._rows(self.ids, seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def _warmth(self) -> float:
        """The rate's factor: it rises at first, and does not fall, so that any step may be last."""
        return min(1.0, (self.step + 1) / WARMUP_STEPS)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Loss on the part of the text that is not trained on."""
        self.model.eval()
        batches = (self._rows(self.held_out, -1 - number) for number in range(HELD_OUT_BATCHES))
        return sum(self._loss(*batch).item() for batch in batches) / HELD_OUT_BATCHES

    def save(self) -> None:
        """Write checkpoint, model and plot; the checkpoint appears whole or not at all."""
        settings = {name: getattr(self.arguments, name) for name in STORED}
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "settings": settings,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "losses": self.losses,
                "held_out_losses": self.held_out_losses,
            },
            partial,
        )
        export_model(self.model, self.vocabulary, self.folder)
        lines = {"training": self.losses, "held out": self.held_out_losses}
        plot = loss_plot(f"{self.folder.name}: loss by step", lines)
        (self.folder / "loss.svg").write_text(plot, encoding="utf-8")
        partial.replace(self.checkpoint)

    def run(self, steps: int, every: int) -> None:
        """Train until `steps` are done; report, and save, every so many."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        print(
            f"{self.arguments.kind} of {count / 1e6:.2f} million parameters and "
            f"{self.vocabulary.size} tokens; text of {len(self.ids)} tokens, {len(self.held_out)} "
            "more held out",
            flush=True,
        )
        began, first, recent = time.monotonic(), self.step, []
        while self.step < steps:
            recent.append(self.train_step())
            if self.step % every == 0 or self.step == steps:
                self.losses.append((self.step, sum(recent) / len(recent)))
                self.held_out_losses.append((self.step, self.held_out_loss()))
                recent.clear()
                self.save()
                seconds = (time.monotonic() - began) / (self.step - first)
                speed = self.arguments.rows * self.arguments.context / seconds
                print(
                    f"step {self.step} of {steps}: loss {self.losses[-1][1]:.4f}, held out "
                    f"{self.held_out_losses[-1][1]:.4f}, {speed:.0f} tokens/s, "
                    f"{(steps - self.step) * seconds / 60:.1f} minutes left",
                    flush=True,
                )


def parse_arguments() -> argparse.Namespace:
    """The command line. The sizes are nanoGPT's for a text of a megabyte on one GPU, halved."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", help="UTF-8 text files")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--kind", choices=("gpt", "llama"), default="gpt")
    parser.add_argument("--tokens", choices=("char", "bpe"), default="char")
    parser.add_argument("--vocabulary", type=int, default=2048, help="the most tokens of a BPE")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--context", type=int, default=128, help="tokens")
    parser.add_argument("--rows", type=int, default=12, help="rows of a step")
    parser.add_argument("--steps", type=int, default=2000, help="steps in all")
    parser.add_argument("--every", type=int, default=100, help="steps between reports and saves")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train, or go on training."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    training = Training(arguments)
    training.run(arguments.steps, arguments.every)
    print(f"next: hearth generate {arguments.out}")


if __name__ == "__main__":
    main()
