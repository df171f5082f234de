"""Runs the unit tests of what depends on the system against an installed wheel.

Away from the checkout, so that what is installed is what is tested. Options are pytest's.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

from hearth import _native

TESTS = Path(__file__).resolve().parent
# Tests that need no files of the checkout beside their own folder, and nothing of Linux's.
FILES = (
    "test_cache.py",
    "test_certificates.py",
    "test_converter_chat.py",
    "test_kept_page_files.py",
    "test_mesh_listener.py",
    "test_native_shard.py",
    "test_settings.py",
    "test_stopping.py",
    "test_tokenizers.py",
)
# What tests make that only POSIX systems have: owners, modes, links, FIFOs, limits of memory.
ONLY_POSIX = "not (owner or foreign or others or link or fifo or memory or mode or writable)"


def main() -> int:
    if (TESTS.parent / "build" / "vulkan").is_dir():
        # Built with shaders at hand: a wheel without the backend is a mistake.
        assert _native.has_vulkan()
    os.chdir(tempfile.mkdtemp())
    chosen = () if sys.platform == "linux" else ("-k", ONLY_POSIX)
    # musl has no wheels of some tokenizers.
    whole = importlib.util.find_spec("sentencepiece") is not None
    chosen_files = [name for name in FILES if whole or name != "test_tokenizers.py"]
    files = [str(TESTS / "unit" / name) for name in chosen_files]
    options = ("-q", "-o", "addopts=", "-c", str(TESTS.parent / "pyproject.toml"))
    return int(pytest.main([*options, *chosen, *files, *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
