"""Proofs of the epoch's key on a connection between two ranks, and the keys of its frames.

The handshake has fixed sizes, and each side proves the epoch's key before the other reads on:

    listener -> dialler   32 bytes  nonce A
    dialler  -> listener  80 bytes  magic, own rank, peer's rank (u32 each), nonce B, proof
    listener -> dialler   32 bytes  proof

A proof is HMAC-SHA256(epoch's key, role | A | B | ranks). Every epoch has its own key, sent over
gRPC, so a connection of an older epoch cannot pass. The keys of the frames are made from the same
secret and both nonces by HKDF (RFC 5869), one for each direction.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
NONCE_BYTES = 32
PROOF_BYTES = 32
# The number counts the versions of handshake and frames.
MAGIC = b"HRTHMSH2"
_HELLO = struct.Struct("<8sII32s32s")
HELLO_BYTES = _HELLO.size


@dataclass(frozen=True, slots=True)
class Handshake:
    """Ranks and nonces of one connection."""

    dialler: int
    listener: int
    dialler_nonce: bytes
    listener_nonce: bytes

    def hello(self, key: bytes) -> bytes:
        """The dialler's message."""
        proof = self._proof(key, b"dial")
        return _HELLO.pack(MAGIC, self.dialler, self.listener, self.dialler_nonce, proof)

    def answer(self, key: bytes) -> bytes:
        """The listener's answer to a hello."""
        return self._proof(key, b"accept")

    def frame_keys(self, key: bytes, cipher: str) -> tuple[bytes, bytes]:
        """Keys of the frames: of those that the dialler sends, of those that the listener sends.

        cipher: its name in `_native.mesh_ciphers`, or "plain".
        """
        info = b"hearth mesh frames, " + cipher.encode() + b", " + self._ranks()
        salt = self.listener_nonce + self.dialler_nonce
        both = HKDF(SHA256(), 2 * KEY_BYTES, salt, info).derive(key)
        return both[:KEY_BYTES], both[KEY_BYTES:]

    def _ranks(self) -> bytes:
        return struct.pack("<II", self.dialler, self.listener)

    def _proof(self, key: bytes, role: bytes) -> bytes:
        text = role + self.listener_nonce + self.dialler_nonce + self._ranks()
        return hmac.digest(key, text, "sha256")


def read_hello(data: bytes, listener_nonce: bytes) -> tuple[Handshake, bytes] | None:
    """The handshake that a hello of HELLO_BYTES asks for, and its proof; None for other data."""
    magic, dialler, listener, nonce, proof = _HELLO.unpack(data)
    if magic != MAGIC:
        return None
    return Handshake(dialler, listener, nonce, listener_nonce), proof


def proves(handshake: Handshake, key: bytes, proof: bytes) -> bool:
    """True if `proof`, from a hello, was made with `key`."""
    return hmac.compare_digest(proof, handshake._proof(key, b"dial"))
