"""`make documents DOCUMENTS=1000`: structured output of a hot small model, and its cost.

    python tests/survival/documents.py DOCUMENTS [NODES]

A document of each random schema, at a temperature of 1.5, by SmolLM2-135M-Instruct on NODES nodes
of this machine (default 3). Fails for one that is not valid. Then decodes without a constraint,
in a long string, and in records, in turns, one sequence at a time: prints their tokens per second.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jsonschema
from harness import ServiceProcess, WorkerProcess
from random_schemas import random_schema

from hearth.client import Client, FinishReason

AT_ONCE = 8
HOT = 1.5
TEMPERATURES = (0.0, 0.7, HOT)
ROUNDS = 7
TOKENS = 100
# Constraints that answers of so many tokens cannot meet.
LONG = {"type": "string", "minLength": 2000}
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "score": {"type": "number"},
        "colour": {"enum": ["red", "green", "blue"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "score", "colour", "tags"],
    "additionalProperties": False,
}
SIDES = {
    "free": None,
    "a string": LONG,
    "records": {"type": "array", "items": RECORD, "minItems": 100},
}


def document(client: Client, seed: int) -> str:
    """The problem of one document; "" for a valid one."""
    schema = random_schema(seed)
    with client.generate(
        "The data as JSON: ", temperature=HOT, seed=seed, json_schema=schema, timeout=600
    ) as stream:
        text = "".join(stream)
    if stream.finish_reason is not FinishReason.EOS:
        return f"schema {seed} was cut off: {stream.finish_reason}"
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"schema {seed}: {error}\n{text}"
    return ""


def speed(client: Client, schema: dict[str, object] | None, temperature: float) -> float:
    """Tokens per second of a decode."""
    with client.generate(
        "Once upon a time",
        max_tokens=TOKENS,
        ignore_eos=True,
        temperature=temperature,
        seed=1,
        json_schema=schema,
    ) as stream:
        for _ in stream:
            pass
    assert stream.usage is not None
    return (stream.usage.completion_tokens - 1) / stream.usage.decode_seconds


def main(documents: int, nodes: int) -> int:
    """Returns 1 where a document is not valid."""
    logs = Path(tempfile.mkdtemp(prefix="hearth-documents-"))
    workers = [WorkerProcess(log=logs / f"worker{number}") for number in range(1, nodes)]
    addresses = [worker.address for worker in workers]
    root = ServiceProcess(
        *("root", "--model", "smollm2", "--listen", "127.0.0.1:0", "--threads", "1"),
        # Without drafts: texts that are asked for again would be guessed.
        *("--context", "512", "--sequences", str(AT_ONCE), "--speculate", "off"),
        *(("--workers", *addresses) if addresses else ()),
        log=logs / "root",
    )
    try:
        with Client(root.address, timeout=120) as client:
            began = time.monotonic()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                problems = list(pool.map(lambda seed: document(client, seed), range(documents)))
            bad = list(filter(None, problems))
            seconds = time.monotonic() - began
            print(f"{documents - len(bad)} of {documents} documents are valid, {seconds:.0f} s")
            for problem in bad[:10]:
                print(problem)
            for temperature in TEMPERATURES:
                rounds = [
                    [speed(client, schema, temperature) for schema in SIDES.values()]
                    for _ in range(ROUNDS)
                ]
                print(f"{nodes} nodes, temperature {temperature}, tokens/s:")
                free = statistics.median(each[0] for each in rounds)
                for name, found in zip(SIDES, zip(*rounds, strict=True), strict=True):
                    median = statistics.median(found)
                    print(
                        f"  {name:8} {median:6.1f} ({min(found):.1f} to {max(found):.1f}), "
                        f"{median / free - 1:+.1%}"
                    )
    finally:
        root.end()
        for worker in workers:
            worker.end()
        shutil.rmtree(logs)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3))
