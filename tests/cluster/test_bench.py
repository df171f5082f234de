"""`hearth bench` on the demo model."""

import json

from harness import hearth


def test_sequences_and_a_depth() -> None:
    sizes = ("--sequences", "3", "--depth", "70", "--prompt-tokens", "8", "--new-tokens", "4")
    ran = hearth("bench", "demo", *sizes, "--threads", "1", "--repeats", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert (result["sequences"], result["depth"]) == (3, 70)
    assert result["prefill_tokens_per_second"] > 0
    assert result["decode_tokens_per_second"] > 0


def test_samples_prefill_their_prompt_once() -> None:
    sizes = ("--samples", "3", "--prompt-tokens", "128", "--new-tokens", "4")
    ran = hearth("bench", "demo", *sizes, "--threads", "1", "--repeats", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["sequences"] == 3
    assert result["decode_tokens_per_second"] > 0
    both = hearth("bench", "demo", "--samples", "3", "--sequences", "3")
    assert both.returncode == 2
    assert "--sequences" in both.stderr
    many = hearth("bench", "demo", "--sequences", "17")
    assert many.returncode == 2
    assert "17 sequences: this model runs at most 16 at once" in many.stderr


def test_stages() -> None:
    """Costs of steps are recorded although each has a part of the sequences only."""
    sizes = ("--sequences", "3", "--prompt-tokens", "8", "--new-tokens", "8")
    nodes = ("--nodes", "2", "--parallel", "pipeline", "--threads", "1")
    ran = hearth("bench", "demo", *sizes, *nodes, "--repeats", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert (result["parallel"], result["nodes"]) == ("pipeline", 2)
    assert result["compute_ms_per_token"] > 0
    assert result["decode_tokens_per_second"] > 0
