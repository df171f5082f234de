"""A worker that is killed in the middle of a document: the rest of it is as valid as its begin."""

from __future__ import annotations

import json

import jsonschema
from scene import Scene

from hearth.client import FinishReason

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 12},
            "count": {"type": "integer", "minimum": 10, "maximum": 99},
        },
        "required": ["name", "count"],
        "additionalProperties": False,
    },
    "minItems": 60,
    "maxItems": 60,
}


def test_a_document_survives_the_loss_of_a_worker() -> None:
    with Scene(2, "--wait-seconds", "1") as scene:
        texts: list[str] = []
        killed = False
        with scene.client.generate(
            "The list:", temperature=1.5, seed=3, json_schema=SCHEMA, timeout=240
        ) as stream:
            for text in stream:
                texts.append(text)
                if not killed and sum(map(len, texts)) > 300:
                    scene.kill(1)
                    killed = True
        assert killed
        assert stream.finish_reason is FinishReason.EOS
        assert len("".join(texts)) > 1000  # it was not over when the worker went
        jsonschema.validate(json.loads("".join(texts)), SCHEMA)
