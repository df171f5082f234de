"""Parsing and formatting of byte counts as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_PATTERN = re.compile(
    r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)(b?)\s*", re.IGNORECASE | re.ASCII
)
_MAX = 2**60


def parse_size(text: str) -> int:
    """Bytes of "512", "4GiB", "1.5 GB", "300M". k, M, G, T are powers of 1000; with "i", of 1024.

    Raises ValueError naming the text.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"not a size: {text!r} (write for example 500MB or 4GiB)")
    units = _BINARY if match[3] else _UNITS
    size = int(float(match[1]) * units[match[2].lower()])
    if size > _MAX:
        raise ValueError(f"size too large: {text!r}")
    return size


def format_size(size: float) -> str:
    """`size` bytes in binary units: "820 B", "1.5 MiB"."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_rate(value: float) -> str:
    """A rate with three digits: "4.17", "1520"."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
