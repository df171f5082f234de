"""A dllama model (.m) with its tokenizer (.t) runs as the model that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import dllama_files as files
import known_answers
import pytest
from harness import hearth

from hearth.converter import open_model

EXACT = ("--weights", "f32", "--kv-type", "f32", "--sync-type", "f32", "--threads", "1")


@pytest.mark.parametrize("nodes", ["1", "3"])
def test_the_demo_model(tmp_path: Path, nodes: str) -> None:
    """Its known answers, on nodes whose shares are equal and not."""
    with open_model("demo") as model:
        path = files.write_model(tmp_path / "demo.m", model, "f16")
        tokens = files.byte_level_tokens(model.tokenizer())
        scores = [-float(id) for id in range(len(tokens))]
        (tmp_path / "demo.t").write_bytes(files.tokenizer_bytes(tokens, scores, 0, [1]))
    story = known_answers.read_stories()[0]
    length = str(len(story["greedy_ids"]))
    arguments = (str(path), "--prompt", story["prompt"], "--max-tokens", length, "--nodes", nodes)
    ran = hearth("generate", *arguments, *EXACT, "--json")
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["token_ids"] == story["greedy_ids"]
    assert answer["text"] == story["text"]
    assert answer["prompt_tokens"] == len(story["prompt_ids"])


def test_stories260k(testdata: Path, tmp_path: Path) -> None:
    """A SentencePiece vocabulary; the former header of the model, the first one of tokenizers."""
    with open_model(str(testdata / "stories260k/stories260K.gguf")) as model:
        path = files.write_model(tmp_path / "stories.m", model, former=True)
        tokenizer = model.tokenizer()
        tokens = files.piece_tokens(tokenizer)
        vocabulary = files.tokenizer_bytes(tokens, files.piece_scores(testdata), 1, [2], version=0)
        (tmp_path / "stories.t").write_bytes(vocabulary)
    ids, text = known_answers.read_stories260k()
    arguments = (str(path), "--prompt", "", "--max-tokens", "200", "--nodes", "2")
    ran = hearth("generate", *arguments, *EXACT, "--context", "512", "--json")
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert answer["token_ids"] == ids
    assert answer["text"] == text
