"""Visits of the web page by a browser, and roots whose models say what a test wants."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, expect
from serving_fakes import EOS, FakeRunner, NextToken, Root

from hearth.v1 import common_pb2, root_pb2

# Waits are for slow machines; a page that never gets there still fails.
expect.set_options(timeout=60_000)
# Rules of axe-core that are checked: WCAG 2.1, levels A and AA.
_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}

# Elements that a model's text may become.
_FINE = {
    *("p", "br", "hr", "blockquote", "pre", "code", "ul", "ol", "li", "strong", "em", "b", "i"),
    *("s", "h1", "h2", "h3", "h4", "h5", "h6", "del", "sub", "sup", "kbd", "a", "table"),
    *("thead", "tbody", "tr", "th", "td", "details", "summary", "div", "span", "button"),
}  # fmt: skip
_ATTRIBUTES = {
    *("href", "title", "align", "start", "open", "target", "rel", "class", "tabindex", "type"),
    *("role", "aria-label"),
}
_CLASSES = {"block", "code", "code-head", "quiet small", "table"}

# visit(root, path="/", expected=(...), outlives=False, **context): a page.
Visit = Callable[..., Page]


class Watched:
    """The complaints of a page: errors of scripts and of the console, requests to elsewhere."""

    def __init__(self, page: Page, url: str) -> None:
        self.complaints: list[str] = []
        # Texts of complaints that a test expects.
        self.expected: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url, "data:", "blob:"))
                else self.complaints.append(f"request to {request.url}")
            ),
        )
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))

    def _said(self, message: ConsoleMessage) -> None:
        # Violations of the content security policy are errors of the console.
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def check(self) -> None:
        left = [
            text
            for text in self.complaints
            if not any(expected in text for expected in self.expected)
        ]
        assert not left, "\n".join(left)


def accessible(page: Page) -> None:
    """No violation of WCAG that axe-core can see."""
    found = Axe().run(page, options=_RULES)
    assert found.violations_count == 0, found.generate_report()


def says(answer: Callable[[str], str]) -> NextToken:
    """Next tokens of a model whose answer is a function of the rendered conversation."""

    def next_token(history: tuple[int, ...]) -> int:
        data = bytes(token for token in history if token < 256)
        prompt, _, made = data.rpartition(b"[assistant]")
        text = answer(prompt.decode()).encode()
        return text[len(made)] if len(made) < len(text) else EOS

    return next_token


def echo(prompt: str) -> str:
    """The last text of the person, in capitals."""
    texts: list[str] = re.findall(r"\[user\]([^\[]*)", prompt)
    return texts[-1].upper()


def speaking(answer: Callable[[str], str] | str, **options: Any) -> Root:
    """A root with a page, whose model gives this answer."""
    function = answer if callable(answer) else lambda _: answer
    seconds = float(options.pop("seconds", 0.0))
    settings = {"context_size": 4096, "max_pages": 4096, **options}
    return Root(FakeRunner(says(function), seconds=seconds), http=True, **settings)


def send(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.keyboard.press("Enter")


def answered(page: Page, text: str | re.Pattern[str]) -> None:
    """The last answer is complete and has this text."""
    expect(page.locator(".message.model").last).to_have_attribute("aria-busy", "false")
    expect(page.locator(".message.model .markdown").last).to_have_text(text)


def last(page: Page) -> str:
    """The text of the last answer, once it is complete."""
    page.wait_for_selector(".message.model:last-of-type[aria-busy=false]")
    return page.locator(".message.model").last.locator(".markdown").last.inner_text()


def two_nodes(state: str = "SERVING", reason: str = "") -> root_pb2.ClusterStatus:
    """A root and one worker."""
    serving = root_pb2.NODE_STATE_SERVING
    return root_pb2.ClusterStatus(
        state=root_pb2.ClusterState.Value(f"CLUSTER_STATE_{state}"),
        reason=reason,
        epoch=3,
        lane=common_pb2.LANE_MESH,
        sync_type=common_pb2.SYNC_TYPE_Q80,
        nodes=[
            root_pb2.ClusterNode(
                address="local",
                state=serving,
                info=common_pb2.NodeInfo(
                    name="desk", threads=4, cores=8, memory_total_bytes=16 << 30
                ),
                weight_bytes=600,
            ),
            root_pb2.ClusterNode(
                address="10.0.0.2:7717",
                state=serving,
                info=common_pb2.NodeInfo(name="pi", threads=4, cores=4),
                placement=common_pb2.Placement(rank=1, ranks=2),
                weight_bytes=400,
                round_trip_seconds=0.00018,
            ),
        ],
        peers=[
            root_pb2.Peer(
                address="10.0.0.2:7717",
                name="pi",
                sources=["static"],
                state=root_pb2.PEER_STATE_IN,
            )
        ],
    )


def check_markdown(elements: list[tuple[str, dict[str, str]]]) -> None:
    """Of a model's text: only these elements and attributes; links lead to the web or to mail."""
    for name, attributes in elements:
        assert name in _FINE, name
        assert attributes.keys() <= _ATTRIBUTES, (name, attributes)
        assert attributes.get("class", "block") in _CLASSES
        assert re.match("https?:|mailto:|$", attributes.get("href", "")), attributes
