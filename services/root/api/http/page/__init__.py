"""The web page at `/`: files of static/, served as they are, without a build step.

The page talks to this root only, by the same faces as any other client: OpenAI's for answers and
`/cluster` (api/http/cluster.py) for the picture. It keeps conversations in the browser.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from hearth.root.api.http.call import TEXT, Call, Header
from hearth.root.api.http.errors import not_found
from hearth.root.api.http.requests import Services

_STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
# Scripts and styles of this origin only, none within the document, and no request elsewhere. A
# model's text becomes markup by DOMPurify alone: browsers with trusted types refuse other ways.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types lit-html dompurify",
    )
)
_HEADERS: tuple[Header, ...] = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    # Asked for again at each visit, and answered with 304 while it is the same.
    ("cache-control", "no-cache"),
)


async def index(call: Call, services: Services) -> None:
    """GET /: the page for browsers; for others the words that clients of Ollama look for."""
    if not _of_browser(call):
        await call.reply_bytes(b"Ollama is running", TEXT, headers=[("vary", "Accept")])
        return
    raw = call.scope["raw_path"]
    if raw != b"/" and not raw.endswith(b"/"):
        # /k/KEY: the page's own addresses are relative to /k/KEY/.
        location = raw.decode("latin-1") + "/"
        await call.reply_bytes(b"", TEXT, 307, [("location", location)])
        return
    await _send(call, "index.html", [("vary", "Accept")])


async def file(call: Call, services: Services) -> None:
    """GET /page/{name}: a file of the page. Raises HttpError 404."""
    name = call.scope["path_params"]["name"]
    if name not in _names():
        raise not_found(call.method, call.path)
    await _send(call, name)


def is_open(call: Call) -> bool:
    """True for what browsers load before a person has entered a key."""
    return call.path.startswith("/page/") or (call.path == "/" and _of_browser(call))


ROUTES = {
    "/": ("GET", index),
    "/page/{name:path}": ("GET", file),
}


def _of_browser(call: Call) -> bool:
    return "text/html" in call.headers.get("accept", "")


async def _send(call: Call, name: str, more: list[Header] | None = None) -> None:
    data, tag = _contents(name)
    headers = [*_HEADERS, ("etag", tag), *(more or [])]
    kind = _TYPES[Path(name).suffix]
    if tag in call.headers.get("if-none-match", ""):
        await call.begin(kind, 304, headers)
        await call.end()
        return
    await call.reply_bytes(data, kind, headers=headers)


@functools.cache
def _names() -> frozenset[str]:
    """Files that are served, by their path in static/."""
    found = (path for path in _STATIC.rglob("*") if path.suffix in _TYPES)
    return frozenset(path.relative_to(_STATIC).as_posix() for path in found)


@functools.cache
def _contents(name: str) -> tuple[bytes, str]:
    """A file and its tag. Read when it is asked for first: a root without visitors holds none."""
    data = (_STATIC / name).read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:32]}"'
