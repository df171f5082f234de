"""Two tabs of one browser: each shows, and neither loses, what the other one writes."""

from __future__ import annotations

import re
import threading

from browsing import Visit, answered, send
from playwright.sync_api import Page, expect
from serving_fakes import Root


def beside(page: Page) -> Page:
    """Another tab with the same address."""
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("header")
    return other


def answers(page: Page) -> list[str]:
    """The shown answers, once the last of them is complete."""
    expect(page.locator(".message.model").last).to_have_attribute("aria-busy", "false")
    return page.locator(".message.model .markdown").all_inner_texts()


def test_each_tab_writes_on(root: Root, visit: Visit) -> None:
    first = visit(root)
    send(first, "one")
    answered(first, "ONE")
    second = beside(first)
    answered(second, "ONE")
    send(second, "two")
    answered(second, "TWO")
    answered(first, "TWO")
    send(first, "three")
    answered(first, "THREE")
    answered(second, "THREE")
    for page in (first, second):
        page.reload()
        answered(page, "THREE")
        assert answers(page) == ["ONE", "TWO", "THREE"]


def test_answers_that_run_in_both(root: Root, visit: Visit) -> None:
    first = visit(root)
    send(first, "one")
    answered(first, "ONE")
    second = beside(first)
    answered(second, "ONE")
    gate = root.runner.gate = threading.Event()
    said = ["one", "from here", "from there"]
    send(first, said[1])
    expect(second.locator(".bubble")).to_have_text(said[:2])
    send(second, said[2])
    expect(first.locator(".bubble")).to_have_text(said)
    gate.set()
    made: list[str | re.Pattern[str]] = ["ONE", "FROM HERE", re.compile("FROM HERE\\s+FROM THERE")]
    # A tab shows the other's answer once that is kept.
    for page in (first, second):
        expect(page.locator(".message.model .markdown")).to_have_text(made)
    for page in (first, second):
        page.reload()
        expect(page.locator(".message.model .markdown")).to_have_text(made)


def test_a_name_and_a_deletion(root: Root, visit: Visit) -> None:
    first = visit(root)
    send(first, "one")
    answered(first, "ONE")
    second = beside(first)
    first.get_by_role("button", name="Rename").click()
    first.locator("dialog input").fill("Numbers")
    first.locator("dialog").get_by_role("button", name="Rename").click()
    entries = second.locator(".sidebar li.open a")
    expect(entries).to_have_text("Numbers")
    send(second, "two")
    answered(second, "TWO")
    expect(first.locator(".sidebar li.open a")).to_have_text("Numbers")
    first.get_by_role("button", name="Delete").click()
    first.locator("dialog").get_by_role("button", name="Delete").click()
    expect(second.locator(".sidebar .none")).to_have_text("No conversations yet")
    second.reload()
    expect(second.locator(".sidebar .none")).to_have_text("No conversations yet")
