"""Encrypted frames of the mesh against another implementation: the package `cryptography`.

A peer played by Python exchanges frames with the core. So both agree on keys, nonces, tags and the
order of bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import threading
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from meshes import connect, frame_key, make_lane
from numpy.typing import NDArray

from hearth import _native
from hearth.common.mesh_handshake import (
    HELLO_BYTES,
    KEY_BYTES,
    MAGIC,
    Handshake,
    proves,
    read_hello,
)
from hearth.common.types import MESH_CIPHER

AEADS: dict[str, Callable[[bytes], AESGCM | ChaCha20Poly1305]] = {
    "aes-256-gcm": AESGCM,
    "chacha20-poly1305": ChaCha20Poly1305,
}
RECORD_BYTES = 64 << 10
NONCES = st.binary(min_size=32, max_size=32)
KEYS = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
RANKS = st.integers(0, 1023)


class Peer:
    """Rank 1 of two, which sends and reads frames of f32."""

    def __init__(self, cipher: str) -> None:
        ends = connect(2)
        self.lane = make_lane(ends[0], "f32", 1 << 30, cipher=cipher)
        end = ends[1][0]
        assert end is not None
        end.settimeout(20)
        self._end = end
        self._sends = AEADS[cipher](frame_key(1, 0))
        self._receives = AEADS[cipher](frame_key(0, 1))
        self._sent = self._received = 0

    def send(self, header: bytes, payload: bytes) -> None:
        out = header
        for at in range(0, len(payload), RECORD_BYTES):
            nonce = struct.pack("<QI", self._sent, 0)
            self._sent += 1
            record = payload[at : at + RECORD_BYTES]
            out += self._sends.encrypt(nonce, record, header if at == 0 else b"")
        self._end.sendall(out)

    def receive(self, header: bytes, size: int) -> bytes:
        """Raises InvalidTag for another frame than this."""
        assert self._read(16) == header
        payload = b""
        while len(payload) < size:
            record = self._read(min(RECORD_BYTES, size - len(payload)) + 16)
            nonce = struct.pack("<QI", self._received, 0)
            self._received += 1
            payload += self._receives.decrypt(nonce, record, b"" if payload else header)
        return payload

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._end.recv(size - len(data))
            assert part
            data += part
        return data

    def close(self) -> None:
        self.lane.close()
        self._end.close()


def sum_with(peer: Peer, x: NDArray[np.float32], step: int, index: int) -> bytes:
    """All-reduces x with a peer whose part is twice x; what the peer received."""
    header = struct.pack("<4I", 0x48525448, step, index, x.nbytes)
    received: list[bytes] = []

    def play() -> None:
        received.append(peer.receive(header, x.nbytes))

    thread = threading.Thread(target=play)
    thread.start()
    sender = threading.Thread(target=peer.send, args=(header, (2 * x).tobytes()))
    sender.start()
    peer.lane.all_reduce(x)
    for each in (thread, sender):
        each.join(20)
    assert len(received) == 1
    return received[0]


@pytest.mark.parametrize("cipher", AEADS)
def test_frames_are_those_of_another_implementation(cipher: str) -> None:
    if cipher not in _native.mesh_ciphers():
        pytest.skip("this machine has no libcrypto")
    peer = Peer(cipher)
    rng = np.random.default_rng(1)
    for step in (1, 2):
        peer.lane.begin(step)
        # Less than a record, exactly one, and several with a rest.
        for index, elements in enumerate((32, RECORD_BYTES // 4, RECORD_BYTES * 3 // 4 + 8)):
            part = rng.normal(size=(1, elements)).astype(np.float32)
            x = part.copy()
            assert sum_with(peer, x, step, index) == part.tobytes()
            np.testing.assert_array_equal(x, part + 2 * part)
    peer.close()


def test_this_machine_encrypts() -> None:
    """Every machine that runs the tests has OpenSSL; without, many tests would say nothing."""
    assert set(_native.mesh_ciphers()) == set(AEADS)
    assert set(_native.mesh_ciphers()) | {"plain"} == set(MESH_CIPHER)


@given(KEYS, RANKS, RANKS, NONCES, NONCES)
def test_a_hello_proves_its_key_and_nothing_else(
    key: bytes, dialler: int, listener: int, dials: bytes, listens: bytes
) -> None:
    ours = Handshake(dialler, listener, dials, listens)
    hello = ours.hello(key)
    assert len(hello) == HELLO_BYTES
    read = read_hello(hello, listens)
    assert read is not None
    theirs, proof = read
    assert theirs == ours
    assert proves(theirs, key, proof)
    for other in (
        Handshake(dialler + 1, listener, dials, listens),
        Handshake(dialler, listener + 1, dials, listens),
        Handshake(dialler, listener, listens + b"\0", listens),
        Handshake(dialler, listener, dials, dials + b"\0"),
    ):
        assert not proves(other, key, proof)
    assert not proves(theirs, bytes(KEY_BYTES) if any(key) else b"\1" * KEY_BYTES, proof)
    assert ours.answer(key) != proof
    assert read_hello(b"HRTHMSH1" + hello[len(MAGIC) :], listens) is None


@given(KEYS, RANKS, RANKS, NONCES, NONCES)
def test_frame_keys_are_hkdf(
    key: bytes, dialler: int, listener: int, dials: bytes, listens: bytes
) -> None:
    """RFC 5869, written out: extract, then two blocks of expand."""
    for cipher in MESH_CIPHER:
        handshake = Handshake(dialler, listener, dials, listens)
        extracted = hmac.digest(listens + dials, key, hashlib.sha256)
        ranks = struct.pack("<II", dialler, listener)
        info = b"hearth mesh frames, " + cipher.encode() + b", " + ranks
        first = hmac.digest(extracted, info + b"\1", hashlib.sha256)
        second = hmac.digest(extracted, first + info + b"\2", hashlib.sha256)
        assert handshake.frame_keys(key, cipher) == (first, second)
