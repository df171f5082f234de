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


CONTROLS = {"<x>": 7, "<xy>": 8, "<z>": 9}


def run_tokens(stops: list[str], tokens: list[str | int]) -> tuple[str, bool]:
    """Text and control tokens, as they are generated; those in no stop text are not fed."""
    matcher = StopMatcher(stops, CONTROLS)
    out = ""
    for token in tokens:
        if isinstance(token, str):
            text, stopped = matcher.feed(token)
        elif token in matcher.controls:
            text, stopped = matcher.feed_control(token)
        else:
            continue
        out += text
        if stopped:
            return out, True
    return out + matcher.flush(), False


@pytest.mark.parametrize(
    ("stops", "tokens", "expected"),
    [
        (["<x>"], ["a", 7, "b"], ("a", True)),
        (["<x>"], ["a<", "x>", "b"], ("a", True)),  # the same letters, as text
        (["<xy>"], ["a", 7, "b", 8], ("ab", True)),
        (["\n<x>"], ["a\n", 7], ("a", True)),
        (["\n<x>"], ["a\n", "b", 7], ("a\nb", False)),
        (["<x><z>!"], ["a", 7, 9, "!"], ("a", True)),
        (["<x><z>!"], ["a", 7, 7, 9, "!b"], ("a", True)),
        (["<x><z>!"], ["a", 7, 9, "?"], ("a?", False)),
        (["x", "<"], ["a", 7, "b"], ("ab", False)),  # parts of a name are not the token
        (["<xy>", "b"], [8], ("", True)),
    ],
)
def test_stop_texts_that_name_control_tokens(
    stops: list[str], tokens: list[str | int], expected: tuple[str, bool]
) -> None:
    assert run_tokens(stops, tokens) == expected


@given(STOPS, st.lists(TEXT, max_size=8))
def test_control_tokens_in_no_stop_text_change_nothing(stops: list[str], pieces: list[str]) -> None:
    tokens: list[str | int] = [token for piece in pieces for token in (piece, 7)]
    assert run_tokens(stops, tokens) == plain(stops, "".join(pieces))
