"""Memory of devices: how much of it a model may have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hearth.common import devices, system

GIB = 1 << 30


@pytest.mark.parametrize(
    ("kind", "free", "host", "kept", "limit", "room"),
    [
        ("cpu", None, 8, 0, None, 8),
        ("cpu", None, 8, 2, 9, 9),  # the limit is of what is kept too
        # Nine tenths of a GPU's own memory, whatever the host has.
        ("discrete", 10, 4, 0, None, 9),
        ("discrete", 10, 4, 0, 5, 5),
        ("discrete", 8, 4, 2, None, 9),
        ("discrete", 20, 4, 5, None, 18),  # a driver that counts what is kept as free
        # Memory that the host shares.
        ("integrated", 10, 4, 0, None, 4),
        ("integrated", 10, 16, 0, None, 9),
        ("integrated", 10, 4, 1, None, 5),
    ],
)
def test_memory_for_a_model(
    kind: str,
    free: int | None,
    host: int,
    kept: int,
    limit: int | None,
    room: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = None
    if free is not None:
        info = SimpleNamespace(kind=kind, memory_bytes=20 * GIB, free_bytes=free * GIB)
    monkeypatch.setattr(devices, "gpu_info", lambda _device: info)
    monkeypatch.setattr(system, "memory_for_model", lambda _limit=None: host * GIB)
    in_bytes = None if limit is None else limit * GIB
    assert devices.memory_for_model("any", in_bytes, kept * GIB) == room * GIB
