"""The cipher that a root chooses for a mesh, from what all ranks have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth import _native
from hearth.common.errors import HearthError, Reason
from hearth.root.cluster.lanes import choose_cipher

AES, CHACHA = "aes-256-gcm", "chacha20-poly1305"
FAST = [AES, CHACHA]  # a CPU with AES instructions
SLOW = [CHACHA, AES]  # a Raspberry Pi 4
OFFERS = st.sampled_from([FAST, SLOW, [AES], [CHACHA], []])


def choose(monkeypatch: pytest.MonkeyPatch, own: list[str], workers: list[list[str]]) -> str:
    monkeypatch.setattr(_native, "mesh_ciphers", lambda: own)
    links: Any = [
        SimpleNamespace(name=f"w{i}", address=f"w{i}:1", mesh_ciphers=offered)
        for i, offered in enumerate(workers, 1)
    ]
    return choose_cipher(links)


@pytest.mark.parametrize(
    ("own", "workers", "chosen"),
    [
        (FAST, [FAST], AES),
        (FAST, [FAST, FAST, FAST], AES),
        (FAST, [SLOW], CHACHA),
        (SLOW, [FAST], CHACHA),
        (SLOW, [SLOW], CHACHA),
        (FAST, [FAST, SLOW, FAST], CHACHA),
        (SLOW, [[AES]], AES),  # an OpenSSL of FIPS mode has no ChaCha20
        (FAST, [[CHACHA]], CHACHA),
    ],
)
def test_the_best_that_all_have(
    monkeypatch: pytest.MonkeyPatch, own: list[str], workers: list[list[str]], chosen: str
) -> None:
    assert choose(monkeypatch, own, workers) == chosen


def test_without_libcrypto_the_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HearthError, match=r"the root cannot encrypt.*libssl3.*--mesh-plain") as own:
        choose(monkeypatch, [], [FAST])
    assert own.value.reason == Reason.BAD_SETTING
    with pytest.raises(HearthError, match=r"worker w2 cannot encrypt.*no libcrypto") as theirs:
        choose(monkeypatch, FAST, [FAST, []])
    assert theirs.value.metadata["worker"] == "w2:1"
    with pytest.raises(HearthError, match="it has only chacha20-poly1305"):
        choose(monkeypatch, [AES], [[CHACHA]])


@given(OFFERS, st.lists(OFFERS, min_size=1, max_size=4))
def test_nothing_is_chosen_that_a_rank_lacks(own: list[str], workers: list[list[str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        try:
            chosen = choose(patch, own, workers)
        except HearthError:
            assert not set(own).intersection(*map(set, workers))
        else:
            assert all(chosen in offered for offered in (own, *workers))
            if all(offered[0] == AES for offered in (own, *workers)):
                assert chosen == AES
