"""Biases, penalties and log probabilities, held to their definitions."""

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.common.candidates import Tails
from hearth.common.errors import HearthError
from hearth.root.engine.adjusting import AdjustedSampler
from hearth.root.engine.interfaces import native_sampler
from hearth.root.engine.params import GenerateParams, Sampling
from hearth.root.engine.sampling import scores

VOCAB = 50
TOKENS = st.integers(0, VOCAB - 1)
PENALTIES = st.sampled_from([0.0, 0.5, -1.25, 2.0])


class Recorder:
    """A sampler that keeps what it is given."""

    def __init__(self) -> None:
        self.logits: npt.NDArray[np.float32] = np.empty(0, np.float32)
        self.accepted: list[int] = []

    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        return 0.0, 0, ahead

    def sample(
        self,
        logits: npt.NDArray[np.float32],
        ids: npt.NDArray[np.uint32] | None = None,
        tails: Tails | None = None,
    ) -> int:
        self.logits = logits
        return int(logits.argmax())

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def accept_prompt(self, tokens: npt.NDArray[np.uint32]) -> None:
        pass


@given(
    st.lists(TOKENS, max_size=100),
    st.dictionaries(TOKENS, st.sampled_from([-100.0, -1.5, 3.0, 100.0])),
    PENALTIES,
    PENALTIES,
)
def test_adjusted_logits_are_as_openai_defines_them(
    answer: list[int], biases: dict[int, float], presence: float, frequency: float
) -> None:
    inner = Recorder()
    sampling = Sampling(
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=tuple(biases.items()),
    )
    sampler = AdjustedSampler(inner, sampling)
    sampler.accept_prompt(np.arange(VOCAB, dtype=np.uint32))
    for token in answer:
        sampler.accept(token)
    logits = np.linspace(-5, 5, VOCAB, dtype=np.float32)
    given = logits.copy()
    sampler.sample(given)
    counts = Counter(answer)
    expected = [
        logits[id] + biases.get(id, 0) - frequency * counts[id] - presence * (counts[id] > 0)
        for id in range(VOCAB)
    ]
    np.testing.assert_allclose(inner.logits, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(given, logits)
    assert inner.accepted == answer


def test_adjusted_logits_need_whole_rows() -> None:
    sampling = Sampling(temperature=0.5, top_k=5, frequency_penalty=1)
    assert sampling.candidates == 0
    assert Sampling(logit_bias=((1, 2.0),)).candidates == 0
    with pytest.raises(ValueError, match="whole rows"):
        AdjustedSampler(Recorder(), sampling).sample(
            np.zeros(1, np.float32), np.zeros(1, np.uint32)
        )


def test_the_cores_sampler_samples_adjusted_logits() -> None:
    row = np.array([0.0, 5.0, 4.0], np.float32)
    plain = native_sampler(Sampling(), 1)
    assert plain.sample(row) == 1
    assert native_sampler(Sampling(logit_bias=((1, -100.0),)), 1).sample(row) == 2
    assert native_sampler(Sampling(logit_bias=((0, 5.5),)), 1).sample(row) == 0
    penalized = native_sampler(Sampling(frequency_penalty=0.75), 1)
    made = []
    for _ in range(6):
        made.append(penalized.sample(row))
        penalized.accept(made[-1])
    assert made == [1, 1, 2, 1, 2, 1]


@given(
    st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40),
    st.integers(0, 20),
    st.data(),
)
def test_scores_are_logarithms_of_softmax(
    logits: list[float], top: int, data: st.DataObject
) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    (score,) = scores((token,), np.array([logits], np.float32), top)
    largest = max(logits)
    total = math.fsum(math.exp(value - largest) for value in logits)
    expected = [value - largest - math.log(total) for value in logits]
    assert score.token == token
    assert score.logprob == pytest.approx(expected[token], abs=1e-6)
    assert len(score.top) == min(top, len(logits))
    values = [value for _, value in score.top]
    assert values == pytest.approx(sorted(expected, reverse=True)[: len(values)], abs=1e-6)
    for id, value in score.top:
        assert value == pytest.approx(expected[id], abs=1e-6)
    assert list(score.top) == sorted(score.top, key=lambda pair: (-pair[1], pair[0]))


def test_out_of_range() -> None:
    for bad in (
        {"presence_penalty": 100.5},
        {"frequency_penalty": -100.5},
        {"frequency_penalty": math.nan},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": tuple((id, 1.0) for id in range(1025))},
    ):
        with pytest.raises(HearthError):
            Sampling(**bad)
    with pytest.raises(HearthError, match="top_logprobs is 21"):
        GenerateParams((1,), top_logprobs=21)
