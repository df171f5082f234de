"""`hearth generate`: prints the text that a model makes from a prompt."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Self

from hearth.cli import options as common
from hearth.cli.command import Command, Option, Options
from hearth.common.terminal import for_stdout


def command() -> Command:
    """The subcommand and its options."""
    params = [
        Option(
            "-p", "--prompt", metavar="TEXT", default="", group=common.TEXT, help="text to continue"
        ),
        common.max_tokens("tokens to make at most; 0: until the model ends or the context is full"),
        Option(
            "--stop",
            multiple=True,
            metavar="TEXT",
            group=common.TEXT,
            help="text that ends the output; may be given several times",
        ),
        Option(
            "--ignore-eos",
            is_flag=True,
            group=common.TEXT,
            help="continue past the end-of-sequence token",
        ),
        Option(
            "--json",
            is_flag=True,
            group=common.OUTPUT,
            help="print one JSON object and nothing else",
        ),
    ]
    return Command(
        "generate",
        run,
        common.generation(params),
        help="Print the text that a model makes from a prompt.",
        one_of=(common.SOURCES, common.EXCLUSIVE_SECURITY),
        needed=(common.NEEDS_SOURCE,),
        too_many="; a prompt follows --prompt (-p), in quotes",
    )


def run(options: Options) -> int:
    """Streams text to stdout; progress and figures go to stderr."""
    if options.root:
        return _run_remote(options)
    from hearth.cli.session import open_session, sampling_of
    from hearth.root.api.prompt import prompt_ids
    from hearth.root.engine.mailbox import Done
    from hearth.root.engine.params import GenerateParams, check_text

    # Values out of range are refused before a model is loaded.
    check_text("prompt", options.prompt)
    wanted = GenerateParams(
        prompt=(),
        max_tokens=options.max_tokens,
        sampling=sampling_of(options),
        stop=tuple(options.stop),
        ignore_eos=options.ignore_eos,
    )
    with open_session(options, quiet=options.json) as session:
        prompt = prompt_ids(session.engine.tokenizer, options.prompt)
        params = dataclasses.replace(wanted, prompt=prompt)
        texts: list[str] = []
        ids: list[int] = []
        started = time.perf_counter()
        with _Output(options) as output:
            for event in session.engine.generate(params):
                if isinstance(event, Done):
                    usage = event.usage
                    finish = event.finish_reason.name.lower()
                    continue
                texts.append(event.text)
                ids.extend(event.token_ids)
                output.write(event.text)
        total = time.perf_counter() - started
        timing = {
            "load_seconds": session.load_seconds,
            "prefill_seconds": usage.prefill_seconds,
            "decode_seconds": usage.decode_seconds,
            "total_seconds": total,
        }
        _finish(options, "".join(texts), ids, finish, usage.prompt_tokens, timing)
    return 0


def _run_remote(options: Options) -> int:
    """The same from a running root."""
    from hearth.cli.connecting import connect

    with connect(options) as client:
        stream = client.generate(
            options.prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
            stop=options.stop,
            ignore_eos=options.ignore_eos,
        )
        texts: list[str] = []
        started = time.perf_counter()
        with _Output(options) as output:
            for text in stream:
                texts.append(text)
                output.write(text)
        total = time.perf_counter() - started
        usage = stream.usage
        assert usage is not None
        assert stream.finish_reason is not None
        timing = {
            "load_seconds": 0.0,
            "prefill_seconds": usage.prefill_seconds,
            "decode_seconds": usage.decode_seconds,
            "total_seconds": total,
        }
        finish = str(stream.finish_reason).lower()
        _finish(
            options, "".join(texts), list(stream.token_ids), finish, usage.prompt_tokens, timing
        )
    return 0


class _Output:
    """The prompt and its continuation on stdout, as it comes; nothing with --json.

    The prompt waits for the first text, and a line that was begun is ended: an error then has a
    line of its own.
    """

    def __init__(self, options: Options) -> None:
        self._silent = options.json
        self._prompt = options.prompt
        self._begun = False

    def write(self, text: str) -> None:
        """Print the next text; the prompt comes before the first."""
        if not self._silent:
            shown = text if self._begun else self._prompt + text
            sys.stdout.write(for_stdout(shown))
            sys.stdout.flush()
            self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._begun:
            self.write("")  # an answer without text
        if self._begun:
            self.write("\n")


def _finish(
    options: Options,
    text: str,
    ids: list[int],
    finish: str,
    prompt_tokens: int,
    timing: dict[str, float],
) -> None:
    if options.json:
        answer = {
            "text": text,
            "token_ids": ids,
            "finish_reason": finish,
            "prompt_tokens": prompt_tokens,
            "timing": {name: round(value, 6) for name, value in timing.items()},
        }
        print(for_stdout(json.dumps(answer, ensure_ascii=False)))
        return
    decode = timing["decode_seconds"]
    rate = f"{(len(ids) - 1) / decode:.1f} tokens/s" if decode > 0 else "one step"
    print(
        f"{len(ids)} tokens, {rate}, first after {timing['prefill_seconds']:.3f} s "
        f"({prompt_tokens} prompt tokens), ended by {finish}",
        file=sys.stderr,
    )
