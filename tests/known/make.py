"""Known answers, computed by transformers and stored beside this file.

    python tests/known/make.py [TESTDATA]    # make test PARITY=1 installs transformers

Run again when models/demo changes; tests/cluster/test_known_answers.py compares. Three files:

demo.json         greedy token ids and texts after some prompts.
demo.logits       logits after each token of the first prompt's story, at a few positions: a magic
                  and a version, then (see known_answers.py) positions and float32 rows.
stories260k.json  200 greedy token ids from BOS and their text, where TESTDATA (make testdata) has
                  the model; the model itself is not stored.

Everything is computed in float32 on a CPU, from the same files that Hearth reads.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import known_answers  # noqa: E402 - tests' modules are found from here on

PROMPTS = ("Once upon a time", "Lily and Tom went to the park.", "The little dog was sad because")
MAX_TOKENS = 120
# Of the first story: the first row, and others up to its end.
POSITIONS = (0, 7, 33, 90)
# A step whose two best logits are nearer than this could go either way in another order of sums.
SMALLEST_GAP = 1e-3


def story(
    model: Any, prompt_ids: Sequence[int], max_tokens: int = MAX_TOKENS
) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Greedy token ids, the prompt's first; and the logits after each but the last."""
    import torch

    ids = list(prompt_ids)
    while True:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
        second, best = np.sort(logits[-1])[-2:]
        if best - second < SMALLEST_GAP:
            raise SystemExit(f"token {len(ids)} is a near tie ({best - second:.1e})")
        ids.append(int(logits[-1].argmax()))
        if ids[-1] == model.config.eos_token_id or len(ids) == len(prompt_ids) + max_tokens:
            return ids, logits


def stories260k(gguf: Path, made_by: str) -> None:
    """Write stories260k.json; the model's weights come through the converter, as f32."""
    import torch
    import transformers

    from hearth.converter import open_model
    from hearth.converter.convert import convert

    with tempfile.TemporaryDirectory() as folder, open_model(str(gguf)) as source:
        converted = convert(str(gguf), Path(folder) / "model", weights="f32")
        model: Any = transformers.LlamaForCausalLM.from_pretrained(
            converted, dtype=torch.float32, attn_implementation="eager"
        )
        model.eval()
        ids, _ = story(model, [model.config.bos_token_id], 200)
        known = {
            "magic": known_answers.MAGIC.decode(),
            "version": known_answers.VERSION,
            "made_by": made_by,
            "greedy_ids": ids[1:],
            "text": source.tokenizer().decode(ids),
        }
    (HERE / "stories260k.json").write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    import torch
    import transformers

    made_by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    if sys.argv[1:]:
        stories260k(Path(sys.argv[1]) / "stories260k" / "stories260K.gguf", made_by)
    model: Any = transformers.LlamaForCausalLM.from_pretrained(
        known_answers.MODEL, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(known_answers.MODEL)
    stories = []
    for prompt in PROMPTS:
        encoded = tokenizer.encode(prompt, add_special_tokens=False)
        prompt_ids = [model.config.bos_token_id, *encoded]
        ids, logits = story(model, prompt_ids)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.startswith(prompt)
        stories.append(
            {
                "prompt": prompt,
                "prompt_ids": prompt_ids,
                "greedy_ids": ids[len(prompt_ids) :],
                "text": text[len(prompt) :],
            }
        )
        if len(stories) == 1:
            rows = logits[list(POSITIONS)]
            known_answers.write_logits(HERE / "demo.logits", POSITIONS, rows)
    known = {
        "magic": known_answers.MAGIC.decode(),
        "version": known_answers.VERSION,
        "made_by": made_by,
        "model_sha256": known_answers.model_digest(),
        "stories": stories,
    }
    (HERE / "demo.json").write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
