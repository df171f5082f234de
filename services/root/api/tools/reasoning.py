"""The texts around a model's reasoning, as its chat template has them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marks:
    """`open` REASONING `close` ANSWER. dropped: texts around the answer that are not part of it."""

    open: str
    close: str
    dropped: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts."""
        return (self.open, self.close, *self.dropped)


# Of models whose templates name both texts, or close what the model opens; the first that fits.
KNOWN: Sequence[Marks] = (
    Marks("<seed:think>", "</seed:think>"),
    Marks("<mm:think>", "</mm:think>"),
    Marks("<think:opensource>", "</think:opensource>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),
    # Gemma 4.
    Marks("<|channel>thought", "<channel|>"),
    # Granite 3.3 and 3.2.
    Marks("<think>", "</think>", ("<response>", "</response>")),
    Marks("Here is my thought process:", "Here is my response:"),
    # Apriel.
    Marks("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", ("[END FINAL RESPONSE]",)),
    Marks("<think>", "</think>"),
    Marks("<thinking>", "</thinking>"),
    Marks("<reasoning>", "</reasoning>"),
    Marks("<thought>", "</thought>"),
    Marks("◁think▷", "◁/think▷"),
)


def marks_in(template: str) -> Marks | None:
    """The known texts that a template holds; None where the model does not reason."""
    for marks in KNOWN:
        if marks.close in template and all(text in template for text in marks.dropped[:1]):
            return marks
    return None


def is_open(marks: Marks, prompt: str) -> bool:
    """Test whether a prompt, of which this is the end, has opened the reasoning."""
    return prompt.rstrip().endswith(marks.open)
