"""Stop texts: never part of the output, whatever the pieces in which the text arrives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.root.engine.stopping import StopMatcher

TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        out += text
        if stopped:
            return out, True
    return out + matcher.flush(), False


def plain(stops: list[str], text: str) -> tuple[str, bool]:
    """The definition: at the first character that completes a stop text, cut before the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(STOPS, st.lists(TEXT, max_size=8))
def test_as_defined_in_any_pieces(stops: list[str], pieces: list[str]) -> None:
    assert run(stops, pieces) == plain(stops, "".join(pieces))


@given(STOPS, st.lists(TEXT, max_size=8))
def test_text_is_given_out_as_soon_as_it_is_safe(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = given_out = ""
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        if stopped:
            return
        seen += piece
        given_out += text
        held = seen[len(given_out) :]
        assert seen == given_out + held
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "out"),
    [
        (["Hello\n", "\nUser:"], "Hello"),
        (["a<|", "end", "|>b"], "a"),
        (["a<|", "end", "|b"], "a<|end|b"),
        (["<<|end|>"], "<"),
    ],
)
def test_examples(pieces: list[str], out: str) -> None:
    assert run(["\n\n", "<|end|>"], pieces)[0] == out


def test_no_stops() -> None:
    assert run([], ["a", "b"]) == ("ab", False)
