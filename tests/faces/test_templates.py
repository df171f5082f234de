"""The prompt of a conversation, as the fields about its template have it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_fakes import EOS, Root

USER = {"role": "user", "content": "hi"}
TITLED = {"title": "Notes", "context": "Of May."}
PLAIN = {"type": "text", "media_type": "text/plain", "data": "It rains."}
PARTS = {"type": "content", "content": [{"type": "text", "text": "It rains."}]}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "aGk="}


@pytest.fixture
def root() -> Iterator[Root]:
    with Root(http=True, context_size=256) as running:
        yield running


def post(root: Root, path: str, status: int = 200, **body: Any) -> Any:
    got = httpx.post(f"{root.url}{path}", json=body, timeout=20)
    assert got.status_code == status, got.text
    return got.json()


def test_without_the_turn_of_the_answer(root: Root) -> None:
    def made(**body: Any) -> str:
        return str(post(root, "/apply-template", messages=[USER], **body)["prompt"])

    assert made() == "<s>[user]hi</s>[assistant]"
    assert made(add_generation_prompt=True) == made()
    assert made(add_generation_prompt=False) == "<s>[user]hi</s>"


def test_an_answer_that_goes_on(root: Root) -> None:
    def continued(text: str) -> list[dict[str, Any]]:
        return [USER, {"role": "assistant", "content": text}]

    body: dict[str, Any] = {"messages": continued("I say </s>"), "continue_final_message": True}
    made = post(root, "/apply-template", **body)
    assert made["prompt"] == "<s>[user]hi</s>[assistant]I say </s>"
    # Texts that the template's own ending has, too; and spaces at the end.
    for text in ("<", "s", "/s>", "a<b ", "</s>"):
        given: dict[str, Any] = {"messages": continued(text), "continue_final_message": True}
        made = post(root, "/apply-template", **given)
        assert made["prompt"] == f"<s>[user]hi</s>[assistant]{text}"
    body["add_generation_prompt"] = False
    post(root, "/v1/chat/completions", **body, max_tokens=1)
    (first, *_) = root.runner.batches
    assert first.tokens == (256, *b"[user]hi", EOS, *b"[assistant]I say </s>")
    body["add_generation_prompt"] = True
    post(root, "/v1/chat/completions", 400, **body)
    for messages in ([USER], continued("")):
        wrong: dict[str, Any] = {"messages": messages, "continue_final_message": True}
        error = post(root, "/v1/chat/completions", 400, **wrong)["error"]
        assert error["param"] == "continue_final_message"


@pytest.mark.parametrize("source", [PLAIN, PARTS])
def test_documents_of_plain_text(root: Root, source: dict[str, Any]) -> None:
    document: dict[str, Any] = {"type": "document", "source": source, **TITLED}
    parts = [document, {"type": "text", "text": "Is it dry?"}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
    post(root, "/v1/messages", **body)
    (first, *_) = root.runner.batches
    text = b"[user]Notes\nOf May.\nIt rains.\nIs it dry?"
    assert first.tokens == (256, *text, EOS, *b"[assistant]")


def test_documents_in_results_of_tools(root: Root) -> None:
    use = {"type": "tool_use", "id": "1", "name": "read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1"}
    for source, status in ((PLAIN, 200), (PDF, 400)):
        content = [{"type": "document", "source": source}]
        messages = [
            USER,
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [{**result, "content": content}]},
        ]
        made = post(root, "/v1/messages/count_tokens", status, messages=messages)
    assert "documents of plain text only" in made["error"]["message"]
