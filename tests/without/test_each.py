"""Each facility taken away by itself: what Hearth then finds differs as it should, and only so.

A facility that were still used, by any path, would give the answers of a system that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import facilities
import pytest

ANSWERS = Path(__file__).with_name("answers.py")
# The answers that differ (see answers.py), by what is taken away.
DIFFERENT: dict[tuple[str, ...], dict[str, Any]] = {
    ("affinity",): {"own_cores": 0},
    ("allocator",): {},
    ("cgroups",): {},
    ("descriptors",): {"mode": "0o644", "dropped": False, "folder_is_held": False},
    ("forks",): {},
    ("huge_pages",): {},
    ("limits",): {"peak": False, "data_is_limited": False},
    ("load",): {"load_is_counted": False},
    ("locks",): {"lock_is_exclusive": False},
    ("polls",): {},
    ("proc",): {"available_is_guessed": True, "resident_is_the_peak": True, "status": False},
    ("proc", "sysconf"): {
        "total_is_guessed": True,
        "available_is_guessed": True,
        "resident_is_the_peak": True,
        "status": False,
    },
    ("reuse_port",): {},
    ("shared_memory",): {},
    ("signals",): {"timers": False, "ended_by_an_alarm": False},
    ("sockets",): {"first_probe": False, "patience": False, "wakes_at": 1, "tcp_info": 0},
    ("splice",): {},
    ("sys",): {},
    ("sysconf",): {},
    ("terminals",): {},
    ("users",): {"mode": "0o644", "owners": False, "finds_foreign": False},
}
# What Hearth looks for, and is refused.
REFUSED = {
    "allocator": {"mallopt", "malloc_trim"},
    "cgroups": {"/proc/self/cgroup", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max"},
    "proc": {"/proc/meminfo", "/proc/self/statm", "/proc/self/status", "/proc/self/cgroup"},
    "sys": {"/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max"},
}


def answers(folder: Path, taken: Iterable[str]) -> dict[str, Any]:
    folder.mkdir()
    environment = facilities.environment(folder, taken)
    path = os.pathsep.join([environment["PYTHONPATH"], str(ANSWERS.parents[1])])
    done = subprocess.run(
        [sys.executable, str(ANSWERS)],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers with everything there."""
    return answers(tmp_path_factory.mktemp("plain") / "site", ())


@pytest.mark.parametrize("taken", DIFFERENT, ids="+".join)
def test_only_what_is_taken_away_is_missing(
    taken: tuple[str, ...], plain: dict[str, Any], tmp_path: Path
) -> None:
    found = answers(tmp_path / "site", taken)
    refused, before = set(found.pop("refused")), dict(plain)
    assert before.pop("refused") == []
    if taken != ("load",):  # an idle machine has none
        del found["load_is_counted"], before["load_is_counted"]
    assert found == before | DIFFERENT[taken]
    assert refused >= set().union(*(REFUSED.get(each, set()) for each in taken))


def test_every_facility_is_taken_away_by_itself() -> None:
    assert {taken[0] for taken in DIFFERENT if len(taken) == 1} == set(facilities.ALL)


def test_the_differences_are_differences(plain: dict[str, Any]) -> None:
    """A system with everything gives other answers: none of the tests passes by itself."""
    for taken, different in DIFFERENT.items():
        for name, value in different.items():
            if name != "load_is_counted":
                assert plain[name] != value, (taken, name)
