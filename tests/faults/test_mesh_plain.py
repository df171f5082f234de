"""A cluster with certificates names its mesh's cipher, or warns of plain text."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import ServiceProcess, WorkerProcess, hearth


@pytest.mark.parametrize("plain", [False, True], ids=["encrypted", "plain"])
def test_the_cluster_shows_how_its_mesh_is_protected(plain: bool, tmp_path: Path) -> None:
    certificates = tmp_path / "certs"
    assert hearth("certs", "init", str(certificates)).returncode == 0
    worker = WorkerProcess("--tls", str(certificates / "worker"), log=tmp_path / "worker.log")
    try:
        root = ServiceProcess(
            *("root", "--model", "demo", "--listen", "127.0.0.1:0", "--threads", "1"),
            *("--tls", str(certificates / "root"), "--workers", worker.address),
            log=tmp_path / "root.log",
            environ={"HEARTH_MESH_PLAIN": "1"} if plain else {},
        )
        try:
            client = ("--root", root.address, "--tls", str(certificates / "client"))
            text = hearth("generate", *client, "--prompt", "Once", "--max-tokens", "4")
            shown = hearth("cluster", *client)
        finally:
            root.end()
    finally:
        worker.end()
    assert text.returncode == shown.returncode == 0, text.stderr + shown.stderr
    log = root.log.read_text()
    for said in (shown.stdout, log):
        assert ("plain text" in said) == plain
        assert ("the mesh is not encrypted (--mesh-plain)" in said) == plain
        assert ("AES-256-GCM" in said or "ChaCha20-Poly1305" in said) != plain
