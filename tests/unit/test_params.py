"""Sampling values and the rest of a request: in range, or refused with the value and the range."""

import math
from typing import Any

import pytest
from serving_fakes import BOS, ByteTokenizer

from hearth.common.errors import HearthError
from hearth.root.api.prompt import prompt_ids
from hearth.root.engine.params import GenerateParams, Sampling, check_ids, check_text

BAD: list[tuple[str, Any, str]] = [
    ("temperature", -0.1, "[0, 100]"),
    ("temperature", 100.5, "[0, 100]"),
    ("temperature", math.nan, "[0, 100]"),
    ("temperature", math.inf, "[0, 100]"),
    ("top_k", -1, "[0, 4294967295]"),
    ("top_p", 0.0, "(0, 1]"),
    ("top_p", 1.01, "(0, 1]"),
    ("top_p", math.nan, "(0, 1]"),
    ("min_p", -0.5, "[0, 1]"),
    ("min_p", 1.5, "[0, 1]"),
    ("min_p", math.nan, "[0, 1]"),
    ("repetition_penalty", 0.0, "(0, 10]"),
    ("repetition_penalty", 11.0, "(0, 10]"),
    ("repetition_penalty", math.nan, "(0, 10]"),
    ("seed", -1, "[0, 18446744073709551615]"),
    ("seed", 1 << 64, "[0, 18446744073709551615]"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_out_of_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(HearthError) as error:
        Sampling(**{name: value})
    assert error.value.message == f"{name} is {value}; it must be in {allowed}"
    assert error.value.code.name == "INVALID_ARGUMENT"
    assert error.value.metadata == {"field": name, "value": str(value), "range": allowed}


def test_the_ends_of_the_ranges_are_in() -> None:
    Sampling(0, 0, 1, 0, 10, 0)
    Sampling(100, (1 << 32) - 1, 1e-9, 1, 1e-9, (1 << 64) - 1)


def test_stops_and_max_tokens() -> None:
    GenerateParams((1,), stop=("x" * 256,) * 16)
    with pytest.raises(HearthError, match="17 stop texts were given; at most 16"):
        GenerateParams((1,), stop=("x",) * 17)
    with pytest.raises(HearthError, match="a stop text has 0 characters"):
        GenerateParams((1,), stop=("",))
    with pytest.raises(HearthError, match="a stop text has 257 characters"):
        GenerateParams((1,), stop=("x" * 257,))
    with pytest.raises(HearthError, match="max_tokens is -1"):
        GenerateParams((1,), max_tokens=-1)


def test_text_and_ids() -> None:
    assert check_text("prompt", "Grüße 🔥") == "Grüße 🔥"
    with pytest.raises(HearthError, match=r"the prompt is not valid UTF-8.* \(U\+D83D\) at .* 2"):
        check_text("prompt", "ab\ud83d")
    check_ids([0, 9], 10)
    with pytest.raises(HearthError, match=r"token id 10 at index 1 .* ids are 0 to 9"):
        check_ids([0, 10], 10)
    with pytest.raises(HearthError, match="token id -1"):
        check_ids([-1], 10)


def test_prompt_ids() -> None:
    assert prompt_ids(ByteTokenizer(), "a") == (BOS, 97)
    assert prompt_ids(ByteTokenizer(), "") == (BOS,)
    assert prompt_ids(ByteTokenizer(add_bos=False), "a") == (97,)
    assert prompt_ids(ByteTokenizer(add_bos=False), "") == (BOS,)
    with pytest.raises(HearthError, match="lone surrogate"):
        prompt_ids(ByteTokenizer(), "\udc00")
