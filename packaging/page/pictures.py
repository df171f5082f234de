"""Takes the pictures of docs/page.md: a root, three workers and Chromium, on this machine.

    .venv/bin/python packaging/page/pictures.py [FOLDER]     docs/images by default

The model is SmolLM2 (the extra `assistant`), its answers the most likely ones. As root on Linux the
machines have names of their own. Look at the pictures before they are committed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

TOP = Path(__file__).resolve().parents[2]
WORKERS = ("pi-kitchen", "pi-shelf", "laptop")
SIZES = {"wide": {"width": 1100, "height": 820}, "phone": {"width": 390, "height": 780}}
ASKED = (
    "Write a Python function that adds two numbers, and say in one sentence how it works.",
    "Now one that multiplies three numbers.",
)
LONG = "Tell me a long story about a dog that finds an old boat on the beach."


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def service(name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A `hearth` service from its first line on, on a machine of this name."""
    command = [sys.executable, "-m", "hearth.cli.main", *arguments]
    if os.geteuid() == 0 and shutil.which("unshare"):
        script = 'hostname "$0" && exec "$@"'
        command = ["unshare", "--uts", "sh", "-c", script, name, *command]
    environ = os.environ | {"HEARTH_CONFIG": os.devnull}
    with tempfile.TemporaryFile("w+") as log:
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environ, text=True
        )
        try:
            assert running.stdout is not None
            if "listening" not in running.stdout.readline():
                log.seek(0)
                sys.exit(f"pictures: {name} did not start:\n{log.read()}")
            yield running
        finally:
            running.terminate()
            running.wait()


def ask(page: Page, text: str) -> None:
    count = page.locator(".message.model").count()
    page.fill("#text", text)
    page.keyboard.press("Enter")
    expect(page.locator(".message.model")).to_have_count(count + 1)


def answered(page: Page) -> None:
    expect(page.locator(".message.model").last).to_have_attribute("aria-busy", "false")


def visit(browser: Browser, url: str, size: str, theme: str) -> Page:
    """A page with settings that make an answer the most likely one."""
    context = browser.new_context(viewport=SIZES[size], color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.evaluate('localStorage.setItem(\'hearth.settings\', \'{"system":"","temperature":0}\')')
    page.reload()
    expect(page.locator(".lamp.serving").first).to_be_visible()
    return page


def take(page: Page, folder: Path, name: str) -> None:
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement?.blur()")
    path = folder / f"page-{name}.png"
    page.screenshot(path=path, animations="disabled")
    print(f"{path}: {path.stat().st_size >> 10} KiB")


def conversation(
    browser: Browser, url: str, folder: Path, name: str, size: str, theme: str
) -> None:
    page = visit(browser, url, size, theme)
    for text in ASKED:
        ask(page, text)
        answered(page)
    take(page, folder, name)
    page.context.close()


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else TOP / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    ports = [free_port() for _ in WORKERS]
    http = free_port()
    url = f"http://127.0.0.1:{http}"
    one = ("--threads", "1")
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                service(
                    name,
                    *("worker", "--name", name, "--listen", f"127.0.0.1:{port}", *one),
                    *("--cache-dir", "none"),
                )
            )
            for name, port in zip(WORKERS, ports, strict=True)
        ]
        workers = [f"127.0.0.1:{port}" for port in ports]
        stack.enter_context(
            service(
                "desk",
                *("root", "--model", "smollm2", "--workers", *workers, *one),
                *("--listen", "127.0.0.1:0", "--http", f"127.0.0.1:{http}"),
                # Equal shares, however busy this machine is.
                *("--wait-seconds", "120", "--no-predict"),
            )
        )
        driver = stack.enter_context(sync_playwright())
        expect.set_options(timeout=120_000)
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        stack.callback(browser.close)
        conversation(browser, url, folder, "chat", "wide", "light")
        conversation(browser, url, folder, "phone", "phone", "light")
        conversation(browser, url, folder, "dark", "wide", "dark")
        page = visit(browser, url, "wide", "light")
        ask(page, LONG)
        page.goto(f"{url}/#/cluster")
        expect(page.locator(".node").last).to_contain_text("in syncs")
        take(page, folder, "cluster")
        running[-1].kill()
        expect(page.locator(".node.lost")).to_have_count(1)
        take(page, folder, "cluster-lost")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
