"""Streams as Schemathesis checks them with OpenAI's document: each of their events by itself.

Schemathesis loads this by SCHEMATHESIS_HOOKS (test_openapi.py). Where the document differs from
OpenAI's own service and its libraries, it is amended here, each with its reason.
"""

import json
from typing import Any

import jsonschema_rs
import schemathesis

EVENTS = "text/event-stream"
# Path -> the schema of an event's data.
_OF_EVENTS = {
    "/chat/completions": "CreateChatCompletionStreamResponse",
    "/completions": "CreateCompletionResponse",
    "/responses": "ResponseStreamEvent",
}
_validators: dict[str, Any] = {}


def before_load_schema(context: object, raw_schema: dict[str, Any]) -> None:
    """Amends the document before it is used."""
    schemas = raw_schema["components"]["schemas"]
    # base64 is what `encoding_format` asks for; the document knows lists of numbers only.
    vector = schemas["Embedding"]["properties"]["embedding"]
    schemas["Embedding"]["properties"]["embedding"] = {"anyOf": [vector, {"type": "string"}]}
    for path, name in _OF_EVENTS.items():
        content = raw_schema["paths"][path]["post"]["responses"]["200"]["content"]
        # Completions stream too, which the document does not say. The schema is that of an event's
        # data: Schemathesis would hold it against the event around.
        content[EVENTS] = {"schema": {}}
        wanted = {
            "$ref": f"#/components/schemas/{name}",
            "components": raw_schema["components"],
        }
        _validators[path] = jsonschema_rs.Draft202012Validator(wanted)


def every_event_fits(ctx: object, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """Each event of a stream fits the document, and the stream has an end."""
    kinds = response.headers.get("content-type") or [""]
    if response.status_code != 200 or not kinds[0].startswith(EVENTS):
        return
    validator = _validators[case.operation.path]
    events = response.content.decode().split("\n\n")
    assert events.pop() == "", "the stream ends within an event"
    last: Any = None
    for event in events:
        data = next(line for line in event.split("\n") if line.startswith("data: "))
        if data == "data: [DONE]":
            continue
        last = json.loads(data.removeprefix("data: "))
        if "error" in last and "type" not in last:
            continue
        if case.operation.path == "/completions":
            _end_open_choices(last)
        for problem in validator.iter_errors(last):
            raise AssertionError(f"{data[:1000]}: {problem.message[:1000]}")
    if case.operation.path == "/responses":
        assert last["type"] in ("response.completed", "response.incomplete", "response.failed")
    elif "error" not in last:
        assert events[-1] == "data: [DONE]"


def _end_open_choices(chunk: Any) -> None:
    """Gives open choices an end: the document has whole completions only, which have one."""
    for choice in chunk["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"


schemathesis.hook(before_load_schema)
schemathesis.check(every_event_fits)
