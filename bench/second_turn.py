"""Time to the first token of a conversation's turns, with the prefix cache.

    python bench/second_turn.py --model random:tinyllama-1.1b --prompt-tokens 2000

The first turn is a prompt of which nothing is known, the second the same with an answer and a new
question behind it. After a restart of all nodes, which have the pages on disk (`--kv-cache disk`),
the conversation goes on with another question. Takes the options of `hearth bench`. Prints the
medians over the repeats, as JSON. Fails if the last answer is another one than without a cache.
"""

import json
import statistics
import sys
import tempfile
import time

import numpy as np

from hearth.cli import bench
from hearth.cli.session import Session, open_session
from hearth.root.engine.mailbox import Delta, Done
from hearth.root.engine.params import GenerateParams

# Tokens of the answer to the first turn, and of the question after it.
ANSWER, QUESTION = 32, 32
# Tokens of a first prompt that warms up.
WARM = 64


def turn(session: Session, prompt: list[int], cache: bool = True) -> tuple[float, list[int], int]:
    """Seconds to the first token of an answer; its tokens; cached tokens of the prompt."""
    times: list[float] = []
    tokens: list[int] = []
    cached = 0
    start = time.perf_counter()
    params = GenerateParams(tuple(prompt), max_tokens=ANSWER, ignore_eos=True, prefix_cache=cache)
    for event in session.engine.generate(params):
        if isinstance(event, Delta):
            times.append(time.perf_counter() - start)
            tokens += event.token_ids
        elif isinstance(event, Done):
            cached = event.usage.cached_tokens
    return times[0], tokens, cached


def random_tokens(session: Session, seed: int, *counts: int) -> list[list[int]]:
    """Texts of so many random tokens."""
    random = np.random.default_rng(seed)
    limit = min(session.model.spec.vocab_size, session.engine.tokenizer.vocab_size)
    return [random.integers(0, limit, count).tolist() for count in counts]


def main() -> None:
    options = bench.command().read(sys.argv[1:])
    options.context = options.prompt_tokens + 2 * ANSWER + QUESTION
    options.kv_cache, options.kv_cache_size = "disk", None
    firsts: list[float] = []
    seconds: list[float] = []
    restarts: list[float] = []
    turns: list[list[int]] = []
    with tempfile.TemporaryDirectory() as folder:
        options.cache_dir = folder
        with open_session(options, quiet=True) as session:
            turn(session, *random_tokens(session, 0, WARM))
            for repeat in range(options.repeats):
                texts = random_tokens(
                    session, 1 + repeat, options.prompt_tokens, QUESTION, QUESTION
                )
                prompt, question, other = texts
                first, answer, _ = turn(session, prompt)
                second, _, cached = turn(session, [*prompt, *answer, *question])
                firsts.append(first)
                seconds.append(second)
                turns.append([*prompt, *answer, *other])
        with open_session(options, quiet=True) as session:
            turn(session, *random_tokens(session, 0, WARM))
            for prompt in turns:
                restarted, text, found = turn(session, prompt)
                restarts.append(restarted)
            if turn(session, prompt, cache=False)[1] != text:
                raise SystemExit("the answer after a restart is not the one without a cache")
    first, second, restarted = map(statistics.median, (firsts, seconds, restarts))
    result = {
        "first_turn_seconds": round(first, 4),
        "second_turn_seconds": round(second, 4),
        "after_restart_seconds": round(restarted, 4),
        "second_turn_ratio": round(second / first, 4),
        "after_restart_ratio": round(restarted / first, 4),
        "cached_tokens": cached,
        "cached_tokens_after_restart": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
