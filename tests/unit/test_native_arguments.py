"""Arguments and settings that the core refuses, because it could only misuse them silently."""

import os
import subprocess
import sys

import numpy as np
import pytest
from meshes import connect, make_lane, on_all
from numpy.typing import NDArray

from hearth import _native

ONES = np.ones((4, 64), np.float32)


class Doubling(_native.Lane):
    def all_reduce(self, x: NDArray[np.float32]) -> None:
        x *= 2


NOT_IN_PLACE = {
    "float64": ONES.astype(np.float64),
    "column-major": np.asfortranarray(ONES),
    "strided": np.ones((4, 128), np.float32)[:, ::2],
    "list": ONES.tolist(),
}


@pytest.mark.parametrize("array", NOT_IN_PLACE.values(), ids=NOT_IN_PLACE)
def test_a_sum_in_place_takes_no_array_that_would_be_copied(array: NDArray[np.float32]) -> None:
    before = np.array(array)
    with pytest.raises(TypeError):
        _native.Lane.all_reduce(Doubling(), array)
    lanes = [make_lane(ends, "f32", 0) for ends in connect(2)]
    for lane in lanes:
        with pytest.raises(TypeError):
            lane.all_reduce(array)
    np.testing.assert_array_equal(np.array(array), before)
    # Nothing was sent: the next sum is right on both ranks.
    sums = [ONES.copy(), ONES.copy()]
    on_all(lanes, lambda rank: lanes[rank].all_reduce(sums[rank]))
    for each in sums:
        np.testing.assert_array_equal(each, 2 * ONES)


def test_a_sum_in_place_takes_no_read_only_array() -> None:
    array = ONES.copy()
    array.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        _native.Lane.all_reduce(Doubling(), array)


def run_with(instruction_set: str) -> subprocess.CompletedProcess[str]:
    code = "from hearth import _native; print(_native.instruction_set())"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HEARTH_INSTRUCTION_SET": instruction_set},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_chooses_kernels() -> None:
    assert run_with("scalar").stdout.strip() == "scalar"
    assert run_with("").stdout.strip() == _native.instruction_sets()[0]


@pytest.mark.parametrize("name", ["avx512-of-tomorrow", "AVX2", "x" * 1000])
def test_kernels_that_are_not_there_are_refused(name: str) -> None:
    there = ", ".join(_native.instruction_sets())
    refused = run_with(name)
    assert refused.returncode == 1
    assert f"HEARTH_INSTRUCTION_SET is '{name[:32]}': this machine has {there}" in refused.stderr
    with pytest.raises(ValueError, match=f"this machine has {there}"):
        _native.set_instruction_set(name)


def test_a_command_says_which_kernels_there_are() -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "hearth.cli.main", "worker", "--listen", "127.0.0.1:0"],
        env={**os.environ, "HEARTH_INSTRUCTION_SET": "bogus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    names = ", ".join(_native.instruction_sets())
    assert refused.stderr == (
        f"hearth: HEARTH_INSTRUCTION_SET is 'bogus': this machine has {names}\n"
    )
