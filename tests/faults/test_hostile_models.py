"""A root whose model's files are hostile: what they take is refused, and all else goes on."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import ServiceProcess, status_bytes

from hearth.client import Client, HearthError
from hearth.converter.packaged import demo_directory

MIB = 1 << 20
# Each place in a text of this letter takes the pattern long, without reaching the library's limit.
SLOW = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?:Q|QQ){1,20}[0-9]"}, "behavior": "Isolated",
         "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}  # fmt: skip
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def model(folder: Path, template: str | None = None, **tokenizer: Any) -> Path:
    """The demo model with another chat template, or other parts of its tokenizer.json."""
    directory = folder / "model"
    shutil.copytree(demo_directory(), directory)
    for name, changes in (
        ("tokenizer_config.json", {} if template is None else {"chat_template": template}),
        ("tokenizer.json", tokenizer),
    ):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


# What is changed, whether a prompt or a conversation meets it, and what its sender is answered.
ATTACKS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "slow pattern": ({"pre_tokenizer": SLOW}, True, r"takes more than .* s of computing"),
    "endless template": ({"template": ENDLESS}, False, "takes longer than 5 s"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_everybody_else_is_served(name: str, tmp_path: Path) -> None:
    """Two hostile requests at once; a third client's come through, and memory stays low."""
    changes, prompts, words = ATTACKS[name]
    service = ["--model", str(model(tmp_path, **changes)), "--listen", "127.0.0.1:0"]
    root = ServiceProcess("root", "--threads", "1", *service, log=tmp_path / "root.log")

    def attack() -> None:
        with Client(root.address) as client, pytest.raises(HearthError, match=words):
            if prompts:
                client.generate_text("Q" * 12_000, max_tokens=1, timeout=60)
            client.generate_text(messages=[{"role": "user", "content": "hi"}], timeout=60)

    try:
        with ThreadPoolExecutor(2) as threads, Client(root.address) as client:
            first = client.generate_text("Once upon a time", max_tokens=4, timeout=60)
            attacks = [threads.submit(attack) for _ in range(2)]
            assert client.generate_text("Once upon a time", max_tokens=4, timeout=60) == first
            assert client.tokenize("the dog", timeout=60)
            for running in attacks:
                running.result()
            assert client.generate_text("Once upon a time", max_tokens=4, timeout=60) == first
        assert status_bytes(root.pid, "VmHWM") < 250 * MIB
    finally:
        code = root.end()
    assert code == 0


def test_the_process_of_the_tokenizer_ends_with_the_root(tmp_path: Path) -> None:
    root = ServiceProcess(
        "root", "--model", "demo", "--threads", "1", "--listen", "127.0.0.1:0",
        log=tmp_path / "root.log",
    )  # fmt: skip
    children = [
        int(path.name)
        for path in Path("/proc").glob("[0-9]*")
        if _parent(path) == root.pid and b"tokenizers.sandbox" in (path / "cmdline").read_bytes()
    ]
    assert len(children) == 1
    root.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{children[0]}").exists() and _state(children[0]) != "Z":
        assert time.monotonic() < deadline, "the process outlives its root"
        os.sched_yield()


def _parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
