"""Limits of containers, as both versions of Linux control groups write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hearth.common import cgroups, system
from hearth.common.cgroups import MemoryLimit

GIB = 1 << 30


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def member(tmp_path: Path, *lines: str) -> tuple[Path, Path]:
    """(groups, membership) of a process in the groups that `lines` name."""
    membership = tmp_path / "cgroup"
    membership.write_text("".join(f"{line}\n" for line in lines))
    return tmp_path / "fs", membership


def version_2(limit: str = "max", quota: str = "max 100000") -> dict[str, str]:
    stat = f"anon 5\nfile 9\ninactive_file {GIB}\nactive_file {GIB}\nslab 7\n"
    used = f"{3 * GIB}\n"
    return {
        "memory.max": f"{limit}\n",
        "memory.current": used,
        "memory.stat": stat,
        "cpu.max": quota,
    }


def test_version_2_in_a_container_of_its_own_name_space(tmp_path: Path) -> None:
    place = member(tmp_path, "0::/")
    write(tmp_path / "fs", version_2(str(4 * GIB), "150000 100000"))
    # 3 GiB are charged, of which 2 are files that can be read again.
    assert list(cgroups.memory_limits(*place)) == [MemoryLimit(4 * GIB, GIB)]
    assert cgroups.quota_cores(*place) == 2


def test_version_2_takes_the_tightest_of_nested_groups(tmp_path: Path) -> None:
    place = member(tmp_path, "0::/pod/container")
    write(tmp_path / "fs", version_2("max"))
    write(tmp_path / "fs" / "pod", version_2(str(4 * GIB), "100000 100000"))
    write(tmp_path / "fs" / "pod" / "container", version_2(str(8 * GIB), "800000 100000"))
    assert [group.limit for group in cgroups.memory_limits(*place)] == [8 * GIB, 4 * GIB]
    assert cgroups.quota_cores(*place) == 1


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_version_1_in_a_container_whose_path_is_the_hosts(tmp_path: Path, controllers: str) -> None:
    place = member(tmp_path, "4:memory:/docker/12ab", f"1:{controllers}:/docker/12ab", "0::/x")
    write(
        tmp_path / "fs" / "memory",
        {
            "memory.limit_in_bytes": f"{2 * GIB}\n",
            "memory.usage_in_bytes": f"{GIB}\n",
            # The group's own fields are not what counts: its children's are in the sums alone.
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
        },
    )
    cpu = {"cpu.cfs_quota_us": "250000\n", "cpu.cfs_period_us": "100000\n"}
    write(tmp_path / "fs" / controllers, cpu)
    assert list(cgroups.memory_limits(*place)) == [MemoryLimit(2 * GIB, GIB // 2)]
    assert cgroups.quota_cores(*place) == 3


def test_version_1_without_limits(tmp_path: Path) -> None:
    place = member(tmp_path, "4:memory:/", "1:cpu:/")
    write(
        tmp_path / "fs" / "memory",
        {
            "memory.limit_in_bytes": "9223372036854771712\n",
            "memory.usage_in_bytes": "1\n",
            "memory.stat": "",
        },
    )
    write(tmp_path / "fs" / "cpu", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"})
    assert not list(cgroups.memory_limits(*place))
    assert cgroups.quota_cores(*place) == 0


@pytest.mark.parametrize("text", ["", "max", "lots", "-5", "0", "1 2 3", "\0"])
def test_what_cannot_be_understood_is_no_limit(tmp_path: Path, text: str) -> None:
    place = member(tmp_path, "nonsense", "0::/")
    stat = {"memory.current": text, "memory.stat": f"active_file {text}\n"}
    write(tmp_path / "fs", {"memory.max": text, "cpu.max": text, **stat})
    write(tmp_path / "fs" / "cpu", {"cpu.cfs_quota_us": text, "cpu.cfs_period_us": text})
    assert not list(cgroups.memory_limits(*place))
    assert cgroups.quota_cores(*place) == 0
    assert not list(cgroups.memory_limits(tmp_path / "none", tmp_path / "none"))


def test_the_limits_are_what_the_planner_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "memory_limits", lambda: iter([MemoryLimit(64 << 20, 24 << 20)]))
    monkeypatch.setattr(cgroups, "quota_cores", lambda: 1)
    assert system.memory_total() == 64 << 20
    assert system.memory_available() == 40 << 20
    assert system.cores() == 1
    monkeypatch.setattr(cgroups, "memory_limits", lambda: iter([MemoryLimit(1 << 20, 2 << 20)]))
    assert system.memory_available() == 0
