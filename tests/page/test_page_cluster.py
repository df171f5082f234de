"""The cluster's view in a real browser: picture, faults in words, drain; clients; keys."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import Future
from pathlib import Path

from browsing import Visit, accessible, answered, send, speaking, two_nodes
from playwright.sync_api import expect

from hearth.common.api_keys import ApiKeys
from hearth.root.status.activity import Activity, NodeActivity
from hearth.v1 import root_pb2


def test_the_picture_shows_machines_links_and_memory(visit: Visit) -> None:
    activity = Activity(
        1, 2, 16, 48, 50, 60, (NodeActivity("desk", 2.0, 1.0), NodeActivity("pi", 3.0, 0.0))
    )
    with speaking("ok", activity=lambda: activity) as root:
        root.cluster.show(two_nodes())
        page = visit(root, "/#/cluster")
        expect(page.locator("h1")).to_have_text("Ready")
        names = page.locator(".node .name")
        expect(names).to_have_text(["desk", "pi"])
        expect(page.locator(".node .tag")).to_have_text("root")
        expect(page.locator(".link.serving text")).to_have_text("180 µs")
        expect(page.locator(".node").first).to_contain_text("600 B of weights")
        expect(page.locator(".node .memory")).to_have_count(1)
        expect(page.locator(".figures-grid")).to_contain_text("1 running, 2 waiting")
        expect(page.locator(".figures-grid")).to_contain_text("25 % of 64 pages")
        expect(page.locator(".machines tbody tr")).to_have_count(2)
        assert "The root and 1 workers" in (
            page.locator(".picture title").first.text_content() or ""
        )
        accessible(page)


def test_rates_are_those_of_the_last_seconds(visit: Visit) -> None:
    """Counters that grow from load to load are shown as rates and shares."""
    steps = itertools.count(1)

    def activity() -> Activity:
        step = next(steps)
        desk = NodeActivity("desk", 1.0 * step, 1.0 * step)
        pi = NodeActivity("pi", 3.0 * step, 1.0 * step)
        return Activity(completion_tokens=1000 * step, nodes=(desk, pi))

    with speaking("ok", activity=activity) as root:
        root.cluster.show(two_nodes())
        page = visit(root, "/#/cluster")
        speed = page.locator(".figures-grid dd").first
        expect(speed).to_have_text(re.compile(r"^[1-9][\d,.]* tokens/s$"))
        expect(page.locator(".node").nth(0)).to_contain_text("50 % of its time in syncs")
        expect(page.locator(".node").nth(1)).to_contain_text("25 % of its time in syncs")


def test_a_lost_worker_is_shown_in_words(visit: Visit) -> None:
    with speaking("ok") as root:
        root.cluster.show(two_nodes())
        page = visit(root, "/#/cluster")
        expect(page.locator(".node.serving")).to_have_count(2)
        lost = two_nodes("DEGRADED", "worker pi (10.0.0.2:7717) was lost: connection reset")
        lost.nodes[1].state = root_pb2.NODE_STATE_LOST
        lost.peers[0].state = root_pb2.PEER_STATE_LOST
        root.cluster.show(lost)
        expect(page.locator("h1")).to_have_text("Paused")
        expect(page.locator(".lead")).to_have_text(
            "Worker pi (10.0.0.2:7717) was lost: connection reset."
        )
        expect(page.locator(".node.lost .name")).to_have_text("pi")
        expect(page.locator(".link.lost")).to_have_count(1)
        accessible(page)
        alone = two_nodes()
        del alone.nodes[1:]
        alone.epoch = 4
        alone.peers[0].state = root_pb2.PEER_STATE_UNREACHABLE
        root.cluster.show(alone)
        expect(page.locator(".lead")).to_have_text("The root runs the model alone.")
        # The worker stays in the picture, without a part.
        expect(page.locator(".node.outside-plan .name")).to_have_text("pi")
        events = page.locator(".events li span")
        expect(events.first).to_contain_text("plan 4 runs on 1 node, after")
        expect(events.nth(1)).to_contain_text("cannot be reached")
        page.goto(f"{root.url}/#/chat")
        expect(page.locator(".banner")).to_have_count(0)


def test_names_of_workers_are_text(visit: Visit) -> None:
    """A worker chooses its name, and what it fails with."""
    evil = two_nodes("DEGRADED", "<img src=x onerror=alert(1)>")
    evil.nodes[1].info.name = evil.peers[0].name = "<script>alert(1)</script>"
    evil.peers[0].reason = evil.nodes[1].reason = "<b onclick=alert(1)>x</b>"
    evil.nodes[1].state = root_pb2.NODE_STATE_LOST
    evil.notes.append("<iframe src=javascript:alert(1)>")
    with speaking("ok") as root:
        root.cluster.show(evil)
        page = visit(root, "/#/cluster")
        expect(page.locator(".machines tbody tr").nth(1)).to_contain_text(
            "<script>alert(1)</script>"
        )
        for name in ("#app script", "#app iframe", "main img", "main b"):
            expect(page.locator(name)).to_have_count(0)


def test_drain_and_undo(visit: Visit) -> None:
    asked: list[tuple[str, bool]] = []
    answers: list[Future[root_pb2.ClusterStatus]] = []

    def drain(worker: str, undo: bool) -> Future[root_pb2.ClusterStatus]:
        asked.append((worker, undo))
        answers.append(Future())
        status = two_nodes()
        if not undo:
            del status.nodes[1:]
            status.peers[0].state = root_pb2.PEER_STATE_DRAINED
        root.cluster.show(status)
        answers[-1].set_result(status)
        return answers[-1]

    with speaking("ok", drain=drain) as root:
        root.cluster.show(two_nodes())
        page = visit(root, "/#/cluster")
        page.get_by_role("button", name="Drain pi").click()
        expect(page.locator("dialog")).to_contain_text("Take pi out?")
        accessible(page)
        page.locator("dialog").get_by_role("button", name="Drain").click()
        expect(page.locator(".node.drained .name")).to_have_text("pi")
        expect(page.locator(".toast")).to_have_text("pi is out")
        page.get_by_role("button", name="Let in pi").click()
        expect(page.locator(".node.serving")).to_have_count(2)
    assert asked == [("10.0.0.2:7717", False), ("10.0.0.2:7717", True)]


KEYS = "anna key-of-a-client-000\nada key-of-an-operator operator\n"


def test_a_key_is_asked_for_and_kept_in_the_tab(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    (tmp_path / "keys").chmod(0o600)
    keys = ApiKeys(tmp_path / "keys")
    with speaking("hello", http_options={"api_keys": keys}) as root:
        root.cluster.show(two_nodes())
        page = visit(root, expected=("401 (Unauthorized)", "403 (Forbidden)"))
        expect(page.locator(".banner")).to_contain_text("wants a key")
        accessible(page)
        send(page, "hi")
        page.locator(".notice.error").get_by_role("button", name="Enter a key").click()
        page.get_by_role("textbox", name="Key").fill("key-of-a-client-000")
        page.keyboard.press("Enter")
        answered(page, "hello")
        expect(page.locator(".banner")).to_have_count(0)
        page.reload()
        expect(page.locator(".lamp.serving")).to_be_visible()
        kept = page.evaluate("() => JSON.stringify([{...localStorage}, document.cookie])")
        assert "key-of-a-client" not in kept
        page.goto(f"{root.url}/#/cluster")
        page.get_by_role("button", name="Drain pi").click()
        page.locator("dialog").get_by_role("button", name="Drain").click()
        expect(page.locator(".toast")).to_contain_text("is for operators")
        other = visit(root, "/k/key-of-a-client-000/")
        expect(other.locator(".lamp.serving")).to_be_visible()
        send(other, "hi")
        answered(other, "hello")
        other.goto(f"{root.url}/k/key-of-a-client-000/#/connect")
        expect(other.locator(".clients")).to_contain_text(f"{root.url}/v1")
        expect(other.locator(".clients")).not_to_contain_text("key-of-a-client")


def test_settings_for_clients_have_this_address(visit: Visit) -> None:
    with speaking("ok") as root:
        page = visit(root, "/#/connect")
        model = root.frontend.model().name
        expect(page.locator(".clients article")).to_have_count(12)
        for text in page.locator(".clients code").all_inner_texts():
            assert root.url in text
        expect(page.locator(".clients")).to_contain_text(model)
        accessible(page)


def test_a_hidden_page_holds_no_stream(visit: Visit) -> None:
    with speaking("ok") as root:
        before = len(root.cluster.callbacks)
        page = visit(root)
        expect(page.locator(".lamp.serving")).to_be_visible()
        assert len(root.cluster.callbacks) == before + 1
        page.goto("about:blank")
        for _ in range(200):
            if len(root.cluster.callbacks) == before:
                break
            page.wait_for_timeout(50)
        assert len(root.cluster.callbacks) == before
