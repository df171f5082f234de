"""The simulation of several clusters (bench/fleet.py) where its result can be said beforehand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_FILE = Path(__file__).resolve().parents[2] / "bench" / "fleet.py"


@pytest.fixture(scope="module")
def fleet() -> Any:
    if not _FILE.exists():
        pytest.skip("bench/ is not beside the tests")
    spec = importlib.util.spec_from_file_location("fleet", _FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_steps_between_and_beyond_the_measured_ones(fleet: Any) -> None:
    speed = fleet.Speed(((1, 0.02), (4, 0.026), (8, 0.042)), 500.0)
    assert [round(speed.step(rows, 0), 4) for rows in (0, 1, 2, 4, 8, 16)] == [
        0.0, 0.02, 0.022, 0.026, 0.042, 0.074,
    ]  # fmt: skip
    assert speed.step(1, 100) == pytest.approx(0.02 + 0.2)
    assert fleet.Speed(((1, 0.02),), 500.0).step(8, 0) == 0.02


def test_one_user_waits_for_the_prompt_and_reads_at_full_speed(fleet: Any) -> None:
    speed = fleet.Speed(((1, 0.025), (2, 0.03)), 400.0)
    people = fleet.People(question_tokens=1e-9, system_tokens=100, turns=1.0)
    found = fleet.simulate(speed, 1, 1, fleet.anywhere, people, seconds=3000)
    # 101 tokens at 400 a second; then a token each 25 ms, and nobody to share with.
    assert found.first_median == pytest.approx(101 / 400, rel=1e-6)
    assert found.rate_median == found.rate_5 == pytest.approx(40.0)
    assert 0 < found.answers < 3000 / 20
    assert found.found == 0


def test_a_full_cluster_makes_what_its_steps_allow(fleet: Any) -> None:
    speed = fleet.Speed(((1, 0.02), (8, 0.04)), 1e9)
    found = fleet.simulate(speed, 1, 200, fleet.anywhere, sequences=8, seconds=600)
    # 8 tokens in 40 ms; less the steps that end a prompt, which make its first token alone.
    assert found.busy == pytest.approx(1.0, abs=0.01)
    assert found.tokens_per_second == pytest.approx(200, rel=0.02)
    assert found.first_median > 30


@pytest.mark.parametrize("name", ["client", "picker"])
def test_conversations_are_found_where_their_pages_are(fleet: Any, name: str) -> None:
    speed = fleet.Speed(((1, 0.02), (16, 0.05)), 1000.0)
    apart = fleet.simulate(speed, 4, 40, fleet.anywhere, seconds=150)
    kept = fleet.simulate(speed, 4, 40, fleet.CHOICES[name], seconds=150)
    assert kept.found > 0.7
    # One of four clusters has them by chance; it gets what was said elsewhere too.
    assert apart.found < kept.found - 0.2
    assert fleet.simulate(speed, 4, 40, fleet.CHOICES[name], page_tokens=0, seconds=150).found == 0


def test_the_same_seed_gives_the_same_people(fleet: Any) -> None:
    speed = fleet.Speed(((1, 0.02), (16, 0.05)), 1000.0)
    one, again, other = (
        fleet.simulate(speed, 2, 20, fleet.by_load, seconds=200, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_twice_the_clusters_serve_about_twice_the_users(fleet: Any) -> None:
    speed = fleet.Speed(((1, 0.03), (8, 0.06)), 1000.0)

    def most(clusters: int) -> Any:
        return fleet.most_users(
            lambda users: fleet.simulate(
                speed, clusters, users, fleet.by_load, sequences=8, seconds=150
            ),
            first_95=3.0,
            rate_5=8.0,
        )

    one, two = most(1), most(2)
    # Larger groups even out better, so a little more than twice; the bounds are those of the draw.
    assert 1.6 < two.users / one.users < 3.0
    assert one.first_95 <= 3.0 and one.rate_5 >= 8.0
    # More than those are too many.
    more = fleet.simulate(speed, 1, one.users * 2, fleet.by_load, sequences=8, seconds=150)
    assert more.first_95 > 3.0 or more.rate_5 < 8.0
