"""`hearth chat`: a conversation in the terminal. An empty line is ignored, Ctrl-C stops an answer,
Ctrl-D ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from hearth.cli import options as common
from hearth.cli.command import Command, Option, Options
from hearth.common.terminal import for_stdout

Messages = list[dict[str, str]]
# From the conversation so far to the pieces of an answer.
Answer = Callable[[Messages], Iterator[str]]


def command() -> Command:
    """The subcommand and its options."""
    params = [
        Option(
            "--system",
            metavar="TEXT",
            group=common.TEXT,
            help="system message: instructions for the model",
        ),
        common.max_tokens("tokens of one answer at most; 0: no limit but the context"),
    ]
    return Command(
        "chat",
        run,
        common.generation(params, temperature=0.7, top_p=0.9),
        help="Talk with a model in the terminal.",
        one_of=(common.SOURCES, common.EXCLUSIVE_SECURITY),
        needed=(common.NEEDS_SOURCE,),
    )


def run(options: Options) -> int:
    """Read lines until the input ends; 0."""
    if options.root:
        from hearth.cli.connecting import connect

        with connect(options) as client:
            template = client.model().has_chat_template
            _warn(template)

            def ask(messages: Messages) -> Iterator[str]:
                return iter(
                    client.generate(
                        None if template else plain(messages),
                        messages=messages if template else None,
                        max_tokens=options.max_tokens,
                        temperature=options.temperature,
                        top_k=options.top_k,
                        top_p=options.top_p,
                        min_p=options.min_p,
                        repetition_penalty=options.repetition_penalty,
                        seed=options.seed,
                    )
                )

            return converse(options.system, ask)
    from hearth.cli.session import Session, open_session, sampling_of
    from hearth.root.api.prompt import conversation_ids, prompt_ids
    from hearth.root.engine.mailbox import Done
    from hearth.root.engine.params import GenerateParams

    sampling = sampling_of(options)

    def answer(session: Session, messages: Messages) -> Iterator[str]:
        tokenizer = session.engine.tokenizer
        if tokenizer.chat_template:
            ids = conversation_ids(tokenizer, messages)
        else:
            ids = prompt_ids(tokenizer, plain(messages))
        params = GenerateParams(prompt=ids, max_tokens=options.max_tokens, sampling=sampling)
        for event in session.engine.generate(params):
            if not isinstance(event, Done):
                yield event.text

    with open_session(options) as session:
        _warn(bool(session.engine.tokenizer.chat_template))
        return converse(options.system, lambda messages: answer(session, messages))


def plain(messages: Messages) -> str:
    """The conversation as one text, for a model without a chat template."""
    return "\n".join(message["content"] for message in messages)


def _warn(template: bool) -> None:
    if not template:
        print("This model has no chat template: it continues your text.", file=sys.stderr)


def converse(system: str | None, answer: Answer) -> int:
    """Read a line and print an answer, in turn."""
    messages: Messages = [{"role": "system", "content": system}] if system else []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        texts: list[str] = []
        stream = answer(messages)
        try:
            for text in stream:
                texts.append(text)
                sys.stdout.write(for_stdout(text))
                sys.stdout.flush()
        except KeyboardInterrupt:
            close = getattr(stream, "cancel", None) or getattr(stream, "close", None)
            if close is not None:
                close()
        except Exception:
            if texts:
                print()  # the error gets a line of its own
            raise
        print()
        messages.append({"role": "assistant", "content": "".join(texts)})
