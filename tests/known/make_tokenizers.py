"""The ids that transformers gives to the texts of tests/tokenizer_directories.py.

    python tests/tokenizer_directories.py FOLDER                          by Hearth's environment
    python tests/known/make_tokenizers.py FOLDER tests/known/tokenizers_5.json    by transformers'

Needs transformers, sentencepiece, protobuf and jinja2; run it with 4.57 and with 5.x.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def digest(value: object) -> str:
    """A short name of a JSON value: the ids themselves would be megabytes."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def around(bare: list[int], special: list[int]) -> list[list[int]]:
    """The ids before and after those of the text itself."""
    for place in range(len(special) - len(bare) + 1):
        if special[place : place + len(bare)] == bare:
            return [special[:place], special[place + len(bare) :]]
    return [special, []]


def answer(auto: Any, folder: Path, texts: list[str], conversation: list[Any]) -> dict[str, Any]:
    """Digests of the texts' ids and of the texts decoded from these; tokens put around a text; EOS;
    the digest of the rendered conversation."""
    tokenizer = auto.from_pretrained(str(folder))
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    chat = None
    if tokenizer.chat_template is not None:
        chat = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
    return {
        "bare": digest(bare),
        "decoded": digest([tokenizer.decode(ids, skip_special_tokens=True) for ids in bare]),
        "around": around(bare[6], tokenizer(texts[6])["input_ids"]),
        "eos": tokenizer.eos_token_id,
        "chat": None if chat is None else digest(chat),
    }


def main() -> int:
    """Write the answers; returns the exit code."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(sys.argv[1])
    told = json.loads((folder / "texts.json").read_text())
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    answers: dict[str, Any] = {}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        try:
            answers[path.name] = answer(
                transformers.AutoTokenizer, path, told["texts"], told["conversation"]
            )
        except Exception as error:
            answers[path.name] = {"error": type(error).__name__}
    written = {"source": f"transformers {transformers.__version__}", "answers": answers}
    Path(sys.argv[2]).write_text(json.dumps(written, separators=(",", ":")) + "\n")
    print(f"{len(answers)} directories by {written['source']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
