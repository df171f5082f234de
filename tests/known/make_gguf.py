"""llama.cpp's ids for the vocabularies of tests/gguf_variants.py, kept as gguf_ids.json.

    pip install llama-cpp-python==0.3.36
    python tests/known/make_gguf.py tests/known/gguf_ids.json

The file has each list of ids once. A variant names, for each text, its list: with control tokens
read and BOS and EOS added, and without. `ends` are the ids that end an answer.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Write the file; returns the exit code."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    from gguf_variants import TEXTS, file_of, variants

    llama_cpp = importlib.import_module("llama_cpp")
    lists: dict[str, int] = {}
    answers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, values in variants().items():
            path = Path(folder) / "vocabulary.gguf"
            path.write_bytes(file_of(values))
            try:
                model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
            except ValueError:
                print(f"{name}: llama.cpp does not load it", file=sys.stderr)
                continue
            vocabulary = llama_cpp.llama_model_get_vocab(model.model)
            count = llama_cpp.llama_vocab_n_tokens(vocabulary)
            answer: dict[str, Any] = {
                "ends": [id for id in range(count) if llama_cpp.llama_vocab_is_eog(vocabulary, id)]
            }
            for kind, special in (("special", True), ("literal", False)):
                answer[kind] = []
                for text in TEXTS:
                    ids = model.tokenize(text.encode(), add_bos=special, special=special)
                    key = " ".join(map(str, ids))
                    answer[kind].append(lists.setdefault(key, len(lists)))
            answers[name] = answer
            model.close()
    source = f"llama-cpp-python {llama_cpp.__version__}"
    written = {"source": source, "lists": list(lists), "variants": answers}
    Path(sys.argv[1]).write_text(json.dumps(written, separators=(",", ":")) + "\n")
    print(f"{len(answers)} variants, {len(TEXTS)} texts each, by {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
