"""`hearth generate`: prints the text that a model makes from a prompt."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Self

from hearth.cli import options as common
from hearth.cli import output
from hearth.cli.answers import Ended, Question, open_model
from hearth.cli.command import Command, Option, Options
from hearth.common.errors import HearthError, Reason

# The most text that is read from standard input: the limit of a message to a root.
_MAX_INPUT_BYTES = 4 << 20
# Texts of one prompt at once.
_MOST_SAMPLES = 64
_ENDS = {
    "eos": "the model ended it",
    "length": "--max-tokens ended it",
    "stop": "a stop text ended it",
    "context": "the context is full",
}


def command() -> Command:
    """The subcommand and its options."""
    params = [
        Option(
            "-p",
            "--prompt",
            metavar="TEXT",
            shown="standard input where it is not a terminal",
            group=common.TEXT,
            help="text to continue",
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
            "--samples",
            read=_samples,
            default=1,
            metavar="N",
            group=common.TEXT,
            help="texts of the same prompt, made together: the prompt is prefilled once; a --seed "
            "is that of the first",
        ),
        Option(
            "--recommended",
            is_flag=True,
            group=common.SAMPLING,
            help="sample as the model's makers recommend, where no other option says how",
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
        one_of=(common.SOURCES, common.EXCLUSIVE_SECURITY, common.FORMS),
        needed=(common.NEEDS_SOURCE,),
        too_many="; a prompt follows --prompt (-p), in quotes",
    )


def run(options: Options) -> int:
    """Stream text to stdout; progress and figures go to stderr."""
    from hearth.root.engine.params import check_text

    prompt = options.prompt if options.prompt is not None else piped_text()
    check_text("prompt", prompt)
    question = Question(prompt, stop=options.stop, ignore_eos=options.ignore_eos)
    if options.samples > 1:
        return _several(options, question)
    with open_model(options, quiet=options.json) as model:
        if not prompt and not options.json:
            output.note("note: there is no prompt (-p TEXT): the model begins by itself")
        answer = model.ask(question)
        texts: list[str] = []
        started = time.perf_counter()
        with _Output(prompt, silent=options.json) as out:
            for text in answer:
                texts.append(text)
                out.write(text)
        total = time.perf_counter() - started
        assert answer.ended is not None  # it was read to its end
        if options.json:
            _print_json("".join(texts), answer.ended, model.load_seconds, total)
        else:
            output.note(summary(answer.ended))
    return 0


def _samples(text: str) -> int:
    count: int = common.count(text)
    if count > _MOST_SAMPLES:
        raise ValueError(f"it must be at most {_MOST_SAMPLES}")
    return count


def _several(options: Options, question: Question) -> int:
    """Several texts of one prompt, each printed when all are made."""
    questions = [replace(question, number=number) for number in range(options.samples)]
    with open_model(options, quiet=options.json, sequences=options.samples) as model:
        if model.greedy and not options.json:
            output.note("note: with --temperature 0 all samples are the same")
        started = time.perf_counter()
        answers = [model.ask(each) for each in questions]
        with ThreadPoolExecutor(len(answers), "sample") as pool:
            texts = list(pool.map("".join, answers))
        total = time.perf_counter() - started
        load_seconds = model.load_seconds
    ends = [answer.ended for answer in answers if answer.ended is not None]
    if options.json:
        samples = [_sample(text, ended) for text, ended in zip(texts, ends, strict=True)]
        timing = {"load_seconds": load_seconds, "total_seconds": total}
        rounded = {name: round(value, 6) for name, value in timing.items()}
        output.line(
            output.as_json(
                {"samples": samples, "prompt_tokens": ends[0].prompt_tokens, "timing": rounded}
            )
        )
        return 0
    for number, text in enumerate(texts, 1):
        output.line(f"--- sample {number} of {len(texts)}")
        output.line(question.text + text)
    made = sum(len(ended.token_ids) for ended in ends)
    output.note(f"{made} tokens in {total:.3f} s, {made / total:.1f} tokens/s of all samples")
    return 0


def _sample(text: str, ended: Ended) -> dict[str, object]:
    return {"text": text, "token_ids": list(ended.token_ids), "finish_reason": ended.reason}


def piped_text() -> str:
    """Standard input as a prompt, less its last newline; "" where it is a terminal or closed.

    Raises HearthError for text that is not UTF-8, or that is larger than a prompt can be.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        content = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    except OSError as error:
        problem = f"cannot read the prompt from standard input: {error.strerror or error}"
        raise HearthError(Reason.INVALID_ARGUMENT, problem) from None
    if len(content) > _MAX_INPUT_BYTES:
        problem = f"standard input has more than {_MAX_INPUT_BYTES} bytes: too many for a prompt"
        raise HearthError(Reason.PROMPT_TOO_LONG, problem)
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        problem = f"the prompt on standard input is not valid UTF-8 at byte {error.start}"
        raise HearthError(Reason.INVALID_ARGUMENT, problem) from None


class _Output:
    """The prompt and its continuation on stdout, as it comes; nothing where `silent`.

    The prompt waits for the first text, and a line that was begun is ended: an error then has a
    line of its own.
    """

    def __init__(self, prompt: str, silent: bool) -> None:
        self._silent = silent
        self._prompt = prompt
        self._begun = False

    def write(self, text: str) -> None:
        """Print the next text; the prompt comes before the first."""
        if not self._silent:
            output.write(text if self._begun else self._prompt + text)
            self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, output.OutputError | BrokenPipeError):
            return  # nothing more can be written
        if kind is None and not self._begun:
            self.write("")  # an answer without text
        if self._begun:
            self.write("\n")


def summary(ended: Ended) -> str:
    """Tokens and speed of an answer, in a line."""
    made = len(ended.token_ids)
    tokens = f"{made} token{'s' * (made != 1)}"
    if made > 1 and ended.decode_seconds > 0:
        tokens += f", {(made - 1) / ended.decode_seconds:.1f} tokens/s"
    prompt = f"{ended.prompt_tokens} token{'s' * (ended.prompt_tokens != 1)} of prompt"
    end = _ENDS.get(ended.reason, ended.reason)
    return f"{tokens}, the first after {ended.prefill_seconds:.3f} s ({prompt}); {end}"


def _print_json(text: str, ended: Ended, load_seconds: float, total_seconds: float) -> None:
    timing = {
        "load_seconds": load_seconds,
        "prefill_seconds": ended.prefill_seconds,
        "decode_seconds": ended.decode_seconds,
        "total_seconds": total_seconds,
    }
    answer = {
        "text": text,
        "token_ids": list(ended.token_ids),
        "finish_reason": ended.reason,
        "prompt_tokens": ended.prompt_tokens,
        "timing": {name: round(value, 6) for name, value in timing.items()},
    }
    output.line(output.as_json(answer))
