"""Decode with and without drafts by lookup, on texts that repeat themselves and on others.

    python bench/lookup.py --model smollm2 --new-tokens 192

Two engines run in turn, one with `--speculate off`, one with `auto`; nothing is kept between
requests. Takes the options of `hearth bench`. Prints a line per prompt, as JSON: tokens per second
of both, their ratio, drafts, and accepted ones. Fails if a text differs.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from hearth.cli import bench
from hearth.cli.session import Session, open_session
from hearth.root.engine.mailbox import Delta
from hearth.root.engine.params import GenerateParams, Sampling

ROOT = Path(__file__).resolve().parent.parent


def prompts() -> dict[str, str]:
    """Texts whose continuation quotes them, and texts to go on freely."""
    text = (ROOT / "docs" / "faults.md").read_text()
    code = (ROOT / "services" / "root" / "engine" / "sampling.py").read_text()
    names = "Anna Berg, Carl Dahl, Eva Frank, Georg Hahn, Ida Jung, Karl Lang"
    return {
        "quote": f"Text:\n{text[:3200]}\n\nThe text again, word by word:\n{text[:300]}",
        "code": f"```\n{code[:2600]}\n```\nThe same, with another name:\n```\n{code[:400]}",
        "list": f"Q: List the names again.\n{names}\nA: Anna Berg, Carl Dahl,",
        "summary": f"Text:\n{text[3200:6000]}\n\nA summary of the text in its own words:\n",
        "story": "Once upon a time, in a village far away, there lived",
        "essay": "The causes of the First World War were",
        "science": "In physics, the second law of thermodynamics states that",
    }


def decode(
    session: Session, ids: tuple[int, ...], new_tokens: int, sampling: Sampling
) -> tuple[float, list[int]]:
    """Tokens per second behind the first one, and the tokens."""
    tokens: list[int] = []
    times: list[float] = []
    params = GenerateParams(ids, new_tokens, sampling, ignore_eos=True, prefix_cache=False)
    for event in session.engine.generate(params):
        if isinstance(event, Delta):
            times.append(time.perf_counter())
            tokens += event.token_ids
    return (len(tokens) - 1) / (times[-1] - times[0]), tokens


def main() -> None:
    options = bench.command().read(sys.argv[1:])
    options.context = options.context or 4096
    options.speculate = "off"
    with open_session(options, quiet=True) as plain:
        options.speculate = "auto"
        with open_session(options, quiet=True) as drafting:
            speculation = drafting.engine.speculation
            assert speculation is not None
            for temperature in (0.0, 0.8):
                sampling = Sampling(temperature=temperature, seed=5)
                for name, text in prompts().items():
                    ids = tuple(plain.engine.tokenizer.encode(text))
                    before = speculation.drafted, speculation.accepted
                    speeds: list[tuple[float, float]] = []
                    for _ in range(options.repeats):
                        off, wanted = decode(plain, ids, options.new_tokens, sampling)
                        on, made = decode(drafting, ids, options.new_tokens, sampling)
                        if made != wanted:
                            raise SystemExit(f"{name}: the text with drafts is another one")
                        speeds.append((off, on))
                    ratios = [on / off for off, on in speeds]
                    result = {
                        "prompt": name,
                        "temperature": temperature,
                        "prompt_tokens": len(ids),
                        "off": round(statistics.median(off for off, _ in speeds), 1),
                        "auto": round(statistics.median(on for _, on in speeds), 1),
                        "ratio": round(statistics.median(ratios), 3),
                        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
                        "drafts": speculation.drafted - before[0],
                        "accepted": speculation.accepted - before[1],
                    }
                    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
