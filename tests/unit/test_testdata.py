"""`make testdata` against a server of this process: what it fetches, keeps and refuses."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import testdata as script
from testdata import FILES, File, fetch

CONTENT = {"a.bin": b"first", "folder/b.bin": b"second", "changed": b"not as it was"}


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, without a log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    for name, data in CONTENT.items():
        path = tmp_path / "there" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    handler = functools.partial(Handler, directory=str(tmp_path / "there"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def file(address: str, name: str, content: bytes | None = None) -> File:
    data = CONTENT[name] if content is None else content
    return File(name, f"{address}/{name}", hashlib.sha256(data).hexdigest())


def test_files_are_fetched_once(address: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    files = [file(address, name) for name in ("a.bin", "folder/b.bin")]
    assert fetch(here, files) == []
    assert (here / "folder/b.bin").read_bytes() == b"second"
    (tmp_path / "there" / "a.bin").unlink()  # what is here already is not asked for
    assert fetch(here, files) == []
    (here / "a.bin").write_bytes(b"damaged")
    (problem,) = fetch(here, files)
    assert "404" in problem


def test_other_content_is_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = file(address, "changed", b"as it was")
    (problem,) = fetch(tmp_path / "here", [wrong])
    assert wrong.sha256 in problem
    assert hashlib.sha256(CONTENT["changed"]).hexdigest() in problem
    monkeypatch.setattr(script, "MOST_BYTES", 4)
    (problem,) = fetch(tmp_path / "here", [file(address, "a.bin")])
    assert "more than 4 bytes" in problem
    assert not (tmp_path / "here").exists()


def test_the_list_is_of_what_tests_read(testdata: Path) -> None:
    """The digests, against the files themselves where they are."""
    assert len({entry.path for entry in FILES}) == len(FILES)
    for entry in FILES:
        data = (testdata / entry.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry.sha256, entry.path
