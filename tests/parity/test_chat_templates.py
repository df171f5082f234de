"""Chat templates of many families, rendered as transformers renders them.

The same text, or a refusal by both. What Hearth sends to a model is that text too. A refused system
message is another test's: it is merged into the first user message.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from serving_fakes import ByteTokenizer

from hearth.converter import ModelError
from hearth.converter.chat import render
from hearth.converter.conversation import conversation_pieces

pytestmark = pytest.mark.parity

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
NAMES = (*SPECIAL.values(), "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "[/INST]")
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi <there> & é "},
        {"role": "assistant", "content": "I am fine."},
        {"role": "user", "content": "Good."},
    ],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "x < y </s> <|im_end|>"},
    ],
]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"name": "f", "description": "d <x>", "parameters": PARAMETERS}
TOOLS: list[list[dict[str, Any]] | None] = [None, [{"type": "function", "function": TOOL}]]


def joined(pieces: str | list[str | int]) -> str:
    if isinstance(pieces, str):
        return pieces
    return "".join(NAMES[piece - 300] if isinstance(piece, int) else piece for piece in pieces)


def rendered(template: str, messages: list[dict[str, Any]], tools: Any) -> str:
    bos, eos = SPECIAL["bos_token"], SPECIAL["eos_token"]
    return render(template, messages, tools=tools, bos_token=bos, eos_token=eos)


def test_families(testdata: Path) -> None:
    reference = importlib.import_module("transformers.utils.chat_template_utils")
    compared = 0
    for path in sorted((testdata / "templates").rglob("*.jinja")):
        template = path.read_text()
        tokenizer = ByteTokenizer(template)
        tokenizer.special_tokens = dict(SPECIAL)
        tokenizer.control_ids = {name: 300 + place for place, name in enumerate(NAMES)}
        for messages in CONVERSATIONS:
            for tools in TOOLS:
                arguments = {"chat_template": template, "add_generation_prompt": True, **SPECIAL}
                try:
                    (expected,), _ = reference.render_jinja_template(
                        conversations=[messages], tools=tools, **arguments
                    )
                except Exception:
                    with pytest.raises(ModelError):
                        rendered(template, messages, tools)
                    continue
                assert rendered(template, messages, tools) == expected
                assert joined(conversation_pieces(tokenizer, messages, tools)) == expected
                compared += 1
    assert compared > 400
