"""Sampling of `generate` and `chat`: what is set, else what the model recommends, else a default.

`generate` is greedy by default, so that scripts get the same text again: it takes a recommendation
with --recommended only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hearth.cli import output
from hearth.cli.command import Options

if TYPE_CHECKING:
    from hearth.v1 import root_pb2

# Greedy: the default of each option that neither the user nor the model names.
GREEDY: Mapping[str, float] = {
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def chosen(
    options: Options, recommended: Mapping[str, float], defaults: Mapping[str, float]
) -> dict[str, Any]:
    """The values of the sampling options by name.

    recommended: of the model (converter/recommended.py). defaults: of the command, beside GREEDY.
    """
    found: dict[str, Any] = {**GREEDY, **defaults, **recommended}
    found["top_k"] = int(found["top_k"])
    given = {name: getattr(options, name) for name in GREEDY}
    return {**found, **{name: value for name, value in given.items() if value is not None}}


def wanted(options: Options) -> bool:
    """True if a recommendation can change the sampling."""
    unset = [name for name in GREEDY if getattr(options, name) is None]
    return bool(getattr(options, "recommended", True) and unset and options.temperature != 0)


def of_message(message: root_pb2.RecommendedSampling) -> Mapping[str, float]:
    """A model's recommendation as a root sends it."""
    return {field.name: value for field, value in message.ListFields() if field.name in GREEDY}


def note(options: Options, recommended: Mapping[str, float]) -> None:
    """Says which settings are the model's own."""
    used = [name for name in GREEDY if name in recommended and getattr(options, name) is None]
    if used:
        shown = ", ".join(f"--{n.replace('_', '-')} {recommended[n]:g}" for n in used)
        output.note(f"note: sampling as the model recommends: {shown}")
