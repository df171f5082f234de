"""A Hugging Face hub on the loopback: the calls that `hearth pull` makes, and their errors.

Written after the hub's public API: GET /api/models/NAME[/revision/REVISION], and HEAD and GET of
/NAME/resolve/REVISION/FILE with an ETag and the commit's id.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_MODEL = re.compile(r"/api/models/(?P<name>[^/]+/[^/?]+)(/revision/(?P<revision>[^/?]+))?(\?.*)?")
_FILE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)(\?.*)?")


@dataclass
class Repository:
    """A model: its files, and the size that the hub states where it is not the file's own."""

    files: dict[str, bytes]
    gated: bool = False
    stated: dict[str, int] = field(default_factory=dict)


class FakeHub:
    """Serves `models` at `address`; `status` answers everything with that error instead."""

    def __init__(self, models: dict[str, Repository]) -> None:
        self.models = models
        self.status = 0
        # Paths of the files that were sent; bytes of each of which a part was asked for.
        self.sent: list[str] = []
        self.parts: dict[str, int] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, with_body: bool) -> None:
        if self.status:
            return _send(request, self.status, b"", with_body)
        if found := _MODEL.fullmatch(request.path):
            return self._describe(request, found["name"], found["revision"] or "main", with_body)
        if found := _FILE.fullmatch(request.path):
            model = self.models.get(found["name"])
            if model is None or found["revision"] not in ("main", COMMIT):
                return _send(request, 404, b"", with_body, code="RepoNotFound")
            if model.gated:
                return _send(request, 403, b"", with_body, code="GatedRepo")
            if found["file"] not in model.files:
                return _send(request, 404, b"", with_body, code="EntryNotFound")
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
            if with_body and part:
                size = int(part[2]) + 1 - int(part[1])
                self.parts[found["file"]] = self.parts.get(found["file"], 0) + size
            elif with_body:
                self.sent.append(found["file"])
            return _send(request, 200, model.files[found["file"]], with_body)
        return _send(request, 404, b"", with_body)

    def _describe(
        self, request: BaseHTTPRequestHandler, name: str, revision: str, with_body: bool
    ) -> None:
        model = self.models.get(name)
        if model is None:
            return _send(request, 404, b"", with_body, code="RepoNotFound")
        if revision not in ("main", COMMIT):
            return _send(request, 404, b"", with_body, code="RevisionNotFound")
        siblings = [
            {"rfilename": file, "size": model.stated.get(file, len(content))}
            for file, content in model.files.items()
        ]
        gated = "manual" if model.gated else False
        answer = {"id": name, "sha": COMMIT, "siblings": siblings, "gated": gated}
        return _send(request, 200, json.dumps(answer).encode(), with_body, kind="application/json")


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    with_body: bool,
    code: str = "",
    kind: str = "application/octet-stream",
) -> None:
    first, length = 0, len(body)
    end = length
    if status == 200 and (wanted := request.headers.get("Range")):
        begin, _, last = wanted.removeprefix("bytes=").partition("-")
        first, end = int(begin), min(length, int(last) + 1) if last else length
        status = 206
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(end - first))
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
    if status == 206:
        request.send_header("Content-Range", f"bytes {first}-{end - 1}/{length}")
    if code:
        request.send_header("X-Error-Code", code)
    request.end_headers()
    if with_body:
        request.wfile.write(body[first:end])
