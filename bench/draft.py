"""Decode of two nodes over a slow link, with and without a draft model, in turn.

The weights are random, so a real draft model would guess nothing. The drafter here computes all
that a draft model does, and then proposes the right token with a given probability, else a wrong
one. Prints tokens per second of both sides, and their ratio, as one JSON object.

    python bench/draft.py --rate 1e9 --delay 0.00025 --rounds 5

Each node has one thread, on a core of its own. Needs root, for the link (delayed_link.py).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from delayed_link import FAR, DelayedLink

from hearth.converter import open_model
from hearth.converter.tokenizers.plain import PlainTokenizer
from hearth.root import drafts
from hearth.root.cluster.cluster import Cluster
from hearth.root.engine.draft_model import DraftModel
from hearth.root.engine.engine import Engine
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.scheduling.batch import Limits, SequenceStep
from hearth.root.scheduling.drafter import Draft
from hearth.root.scheduling.sequence import Sequence as Running
from hearth.root.scheduling.speculation import Speculation
from hearth.root.settings import ClusterSettings


class Forced(DraftModel):
    """A draft model whose guesses are right with a given probability."""

    def __init__(self, runner: Cluster, limits: Limits, vocab_size: int, right: float) -> None:
        super().__init__(runner, limits, vocab_size)
        self._right = right
        self._random = random.Random(1)
        # The tokens that will follow the prompt.
        self.answer: Sequence[int] = ()

    def _next_step(self, sequence: Running, text: list[int], rows: int) -> SequenceStep | None:
        return super()._next_step(sequence, [token % self._vocab_size for token in text], rows)

    def guess(
        self, asked: Sequence[tuple[Running, Sequence[int]]]
    ) -> tuple[list[Draft | None], float]:
        found, seconds = super().guess(asked)
        for i, (sequence, drafted) in enumerate(asked):
            place = len(sequence.tokens) + len(drafted) - len(sequence.request.prompt)
            if found[i] is not None and place < len(self.answer):
                right = self._random.random() < self._right
                found[i] = Draft(self.answer[place] ^ (not right), self._right)
        return found, seconds


def decode(engine: Engine, prompt: tuple[int, ...], count: int) -> tuple[float, list[int]]:
    """Tokens per second behind the first one, and the tokens.

    Sampled tokens do not repeat, and nothing is kept of a text: lookups find nothing.
    """
    tokens: list[int] = []
    times: list[float] = []
    sampling = Sampling(temperature=1.0, seed=3)
    params = GenerateParams(prompt, count, sampling, ignore_eos=True, prefix_cache=False)
    for event in engine.generate(params):
        if isinstance(event, Delta):
            times.append(time.perf_counter())
            tokens += event.token_ids
    return (len(tokens) - 1) / (times[-1] - times[0]), tokens


def measure(options: argparse.Namespace) -> dict[str, object]:
    """The rounds, on the near end."""
    prompt = tuple(range(100, 164))
    settings = ClusterSettings(
        workers=(options.worker,),
        threads=1,
        pin=(options.core,),
        context=len(prompt) + options.new_tokens,
        sequences=1,
        sync_type=options.sync_type,
        speculate="auto",
    )
    runs: dict[str, list[float]] = {"off": [], "draft": []}
    with (
        open_model(options.model, options.weights) as model,
        open_model(options.draft, options.weights) as draft,
    ):
        own = drafts.settings_of(draft, model, settings)
        cluster = Cluster(model, drafts.with_draft(settings, model, draft))
        small = Cluster(draft, own)
        limits = cluster.form()
        engine = Engine(cluster, PlainTokenizer(model.spec.vocab_size), limits)
        engine.start()
        try:
            drafter = Forced(small, small.form(), draft.spec.vocab_size, options.acceptance)
            speculation = Speculation(drafter=drafter)
            for number in range(1 + options.rounds):
                for name, used in (("off", None), ("draft", speculation)):
                    engine.speculation = used
                    speed, tokens = decode(engine, prompt, options.new_tokens)
                    if name == "off":
                        drafter.answer = tokens
                    elif tokens != drafter.answer:
                        raise SystemExit("the text with drafts is another one")
                    if number:  # the first one warms up
                        runs[name].append(speed)
        finally:
            engine.stop(finish=False)
            cluster.close()
            small.close()
    ratios = [on / off for off, on in zip(runs["off"], runs["draft"], strict=True)]
    return {
        "off": round(statistics.median(runs["off"]), 2),
        "draft": round(statistics.median(runs["draft"]), 2),
        "ratio": round(statistics.median(ratios), 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "accepted_per_step": round(speculation.accepted / max(1, speculation.steps), 2),
        "accepted": round(speculation.accepted / max(1, speculation.drafted), 2),
        "draft_seconds": round(speculation.seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:llama-3-8b")
    parser.add_argument("--draft", default="random:smollm2-135m")
    parser.add_argument("--weights", default="q40")
    parser.add_argument("--acceptance", type=float, default=0.7)
    parser.add_argument("--rate", type=float, default=1e9, help="bits per second")
    parser.add_argument("--delay", type=float, default=0.00025, help="seconds, each way")
    parser.add_argument("--sync-type", default="f32")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    cores = sorted(os.sched_getaffinity(0))
    link = DelayedLink(options.rate, options.delay)
    try:
        command = [sys.executable, "-m", "hearth.cli.main", "worker", "--listen", f"{FAR}:0"]
        command += ["--threads", "1", "--insecure", "--pin", str(cores[-1]), "--cache-dir", "none"]
        worker = subprocess.Popen(link.inside(1) + command, stdout=subprocess.PIPE, text=True)
        try:
            assert worker.stdout is not None
            port = worker.stdout.readline().split(":")[-1].strip()
            again = [
                sys.executable,
                *sys.argv,
                "--worker",
                f"{FAR}:{port}",
                "--core",
                str(cores[0]),
            ]
            subprocess.run(link.inside(0) + again, check=True)
        finally:
            worker.terminate()
            worker.wait(30)
    finally:
        link.close()


if __name__ == "__main__":
    main()
