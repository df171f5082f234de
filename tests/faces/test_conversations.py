"""Conversations in the turns that templates accept: large ones, and texts without UTF-8."""

from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import Root

from hearth.root.api.http.conversations import Message, call_of, repaired

MANY = 20_000


class Counted(str):
    """An id that counts comparisons."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def calling(id: str, name: str = "f") -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [call_of(name, {}, id)]}


def result(id: str = "") -> Message:
    return {"role": "tool", "content": "r"} | ({"tool_call_id": id} if id else {})


def test_many_calls_and_results_that_answer_none_of_them() -> None:
    calls = [calling(Counted(f"c{index}")) for index in range(MANY)]
    results = [result(Counted(f"x{index}")) for index in range(MANY)]
    Counted.compared = 0
    made = repaired([*calls, *results])
    assert Counted.compared < MANY
    assert len(made) == 1 + MANY
    assert len(made[0]["tool_calls"]) == MANY
    assert made[1] == {"role": "tool", "content": "r", "tool_call_id": "x0"}


def test_many_results_in_other_orders() -> None:
    calls = [calling(Counted(f"c{index}"), f"f{index}") for index in range(MANY)]
    results = [result(Counted(f"c{index}")) for index in reversed(range(MANY))]
    Counted.compared = 0
    backwards = repaired([*calls, *results])
    assert Counted.compared <= MANY  # with the call that each answers
    assert [each["name"] for each in backwards[1:]] == [f"f{i}" for i in reversed(range(MANY))]
    without = repaired([*calls, *(result() for _ in range(MANY))])
    assert [each["tool_call_id"] for each in without[1:]] == [f"c{i}" for i in range(MANY)]
    same = repaired([*[calling("c")] * MANY, *[result("c")] * MANY, result("c")])
    assert [each.get("name") for each in same[1:]] == ["f"] * MANY + [None]


def test_many_neighbours_of_one_role() -> None:
    text = "a" * 30
    (made,) = repaired({"role": "user", "content": text} for _ in range(MANY))
    assert made["content"] == "\n\n".join([text] * MANY)


def plainly(steps: list[tuple[bool, str]]) -> list[tuple[str | None, str | None]]:
    """Id and name of each result, by looking through all open calls. steps: (is a call, id)."""
    waiting: list[tuple[str, str]] = []
    found: list[tuple[str | None, str | None]] = []
    for number, (is_call, id) in enumerate(steps):
        if is_call:
            waiting.append((id, f"f{number}"))
            continue
        mine = next((each for each in waiting if not id or each[0] == id), None)
        if mine is not None:
            waiting.remove(mine)
        found.append((id or (mine[0] if mine else "") or None, mine[1] if mine else None))
    return found


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["", "a", "b"]))))
def test_results_find_the_first_open_call(steps: list[tuple[bool, str]]) -> None:
    messages = [
        calling(id, f"f{number}") if is_call else result(id)
        for number, (is_call, id) in enumerate(steps)
    ]
    made = [each for each in repaired(messages) if each["role"] == "tool"]
    assert [(each.get("tool_call_id"), each.get("name")) for each in made] == plainly(steps)


def test_neighbours_keep_their_reasoning_and_calls() -> None:
    first = {"role": "assistant", "content": "a", "reasoning_content": "x"}
    second = {**calling("c"), "reasoning_content": "y"}
    (made,) = repaired([first, second])
    assert made == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "xy",
        "tool_calls": second["tool_calls"],
    }
    assert "tool_calls" not in first


def rendered(root: Root, arguments: str) -> httpx.Response:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    messages: list[dict[str, Any]] = [{"role": "assistant", "tool_calls": [call]}]
    return httpx.post(f"{root.url}/apply-template", json={"messages": messages}, timeout=20)


def test_arguments_that_are_not_an_object_stay_a_text() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{% set given = c.function.arguments %}{{ given if given is string else given.a or given }}"
        "{% endfor %}{% endfor %}"
    )
    with Root(http=True, chat_template=template) as root:
        assert rendered(root, '{"a": "\\u00e9"}').json() == {"prompt": "fé"}
        for text in ('{"a": "\\ud800"}', '{"a": 1e999}', '{"a": NaN}', "{", "[1]"):
            got = rendered(root, text)
            assert got.status_code == 200, got.text
            assert got.json() == {"prompt": f"f{text}"}


def test_a_template_whose_prompt_has_no_utf8() -> None:
    with Root(http=True, chat_template='{{ "\\ud800" }}') as root:
        for path in ("/v1/chat/completions", "/apply-template"):
            body = {"messages": [{"role": "user", "content": "a"}]}
            got = httpx.post(f"{root.url}{path}", json=body, timeout=20)
            assert got.status_code == 400, got.text
            assert "cannot become a prompt" in got.json()["error"]["message"]
