"""Time to the first token of a conversation's turns, with the prefix cache.

    python bench/second_turn.py --model random:tinyllama-1.1b --prompt-tokens 2000

The first turn is a prompt of which nothing is known, the second the same with an answer and a new
question behind it. Takes the options of `hearth bench`. Prints the medians over the repeats, as
JSON.
"""

import json
import statistics
import sys
import time

import numpy as np

from hearth.cli import bench
from hearth.cli.session import Session, open_session
from hearth.root.engine.mailbox import Delta, Done
from hearth.root.engine.params import GenerateParams

# Tokens of the answer to the first turn, and of the question after it.
ANSWER, QUESTION = 32, 32


def turn(session: Session, prompt: list[int]) -> tuple[float, list[int], int]:
    """Seconds to the first token of an answer; its tokens; cached tokens of the prompt."""
    times: list[float] = []
    tokens: list[int] = []
    cached = 0
    start = time.perf_counter()
    params = GenerateParams(tuple(prompt), max_tokens=ANSWER, ignore_eos=True)
    for event in session.engine.generate(params):
        if isinstance(event, Delta):
            times.append(time.perf_counter() - start)
            tokens += event.token_ids
        elif isinstance(event, Done):
            cached = event.usage.cached_tokens
    return times[0], tokens, cached


def main() -> None:
    options = bench.command().read(sys.argv[1:])
    options.context = options.prompt_tokens + 2 * ANSWER + QUESTION
    firsts: list[float] = []
    seconds: list[float] = []
    with open_session(options, quiet=True) as session:
        for repeat in range(1 + options.repeats):
            random = np.random.default_rng(repeat)
            limit = min(session.model.spec.vocab_size, session.engine.tokenizer.vocab_size)
            prompt = random.integers(0, limit, options.prompt_tokens).tolist()
            first, answer, _ = turn(session, prompt)
            question = random.integers(0, limit, QUESTION).tolist()
            second, _, cached = turn(session, [*prompt, *answer, *question])
            if repeat:  # the first run warms up
                firsts.append(first)
                seconds.append(second)
    result = {
        "first_turn_seconds": round(statistics.median(firsts), 4),
        "second_turn_seconds": round(statistics.median(seconds), 4),
        "ratio": round(statistics.median(seconds) / statistics.median(firsts), 4),
        "cached_tokens": cached,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
