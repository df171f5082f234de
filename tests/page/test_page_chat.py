"""The chat of the page in a real browser: streaming, branches, what is kept, what never runs."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from browsing import Visit, accessible, answered, check_markdown, last, send, speaking
from playwright.sync_api import Page, expect
from serving_fakes import FakeRunner, Root, script

from hearth.v1 import root_pb2


def test_an_answer_streams_in_and_is_kept(root: Root, visit: Visit) -> None:
    page = visit(root)
    send(page, "hello there")
    answered(page, "HELLO THERE")
    assert "12 tokens" in page.locator(".figures").inner_text()
    page.reload()
    answered(page, "HELLO THERE")
    expect(page.locator(".sidebar li.open a")).to_have_text("hello there")


def test_markdown_is_drawn(visit: Visit) -> None:
    text = (
        "# Title\n\nSome **bold** text.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```python\nprint('<b>')\n```\n\n- one\n- two\n\n[link](https://example.org/)"
    )
    with speaking(text) as root:
        page = visit(root)
        send(page, "hi")
        last(page)
        body = page.locator(".markdown")
        expect(body.locator("h1")).to_have_text("Title")
        expect(body.locator("strong")).to_have_text("bold")
        expect(body.locator("td")).to_have_text(["1", "2"])
        expect(body.locator("pre code")).to_have_text("print('<b>')")
        expect(body.locator(".code-head span")).to_have_text("python")
        expect(body.locator("li")).to_have_count(2)
        link = body.locator("a")
        expect(link).to_have_attribute("href", "https://example.org/")
        expect(link).to_have_attribute("rel", re.compile("noopener"))
        accessible(page)


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![leak](http://203.0.113.1/secret.png)",
    "<img src='http://203.0.113.1/secret.png'>",
    "[a](javascript:alert(1)) [b](data:text/html,<script>alert(1)</script>) [c](vbscript:x)",
    "[a](  jAvAsCrIpT:alert(1)) <a href='java\tscript:alert(1)'>x</a>",
    "<svg onload=alert(1)><animate onbegin=alert(1) attributeName=x></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text y=20>x</text></a></svg>",
    "<iframe src='javascript:alert(1)'></iframe><object data='x'></object><embed src='x'>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<form action='http://203.0.113.1/'><input name=a autofocus onfocus=alert(1)></form>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></math>",
    "<style>*{display:none}</style><link rel=stylesheet href=http://203.0.113.1/x.css>",
    "<div style='inset:0;background:url(http://203.0.113.1/x)' class=banner id=app>x</div>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<base href='http://203.0.113.1/'><meta http-equiv=refresh content='0;url=http://203.0.113.1/'>",
    '```"><img src=x onerror=alert(1)>\n</code></pre><img src=x onerror=alert(1)>\n```',
    "<video src=http://203.0.113.1/x autoplay onplay=alert(1)></video><audio src=http://203.0.113.1/y>",
    '!["><img src=x onerror=alert(1)>](javascript:alert(1) "onerror=alert(1)")',
    "<a href='https://example.org' onclick='alert(1)' target='_self' name='x'>x</a>",
    "<x-custom onclick=alert(1) is=main>x</x-custom><template><script>alert(1)</script></template>",
]
FOUND = """() => [...document.querySelectorAll('.message .markdown *')].map(e =>
    [e.localName, Object.fromEntries([...e.attributes].map(a => [a.name, a.value]))])"""


def test_text_of_a_model_runs_nothing(visit: Visit) -> None:
    """No script, no request elsewhere, no form, no style; the fixture sees dialogs and requests."""

    def answer(prompt: str) -> str:
        attack = ATTACKS[prompt.count("[user]") - 1]
        return f"before {attack} after\n\n{attack}\n\nend"

    with speaking(answer, context_size=1 << 15, max_pages=1 << 15) as root:
        page = visit(root)
        for number, attack in enumerate(ATTACKS):
            send(page, attack)
            expect(page.locator(".message.model")).to_have_count(number + 1)
            assert "end" in last(page), attack
            check_elements(page)
        expect(page.locator(".bubble")).to_have_text(ATTACKS)
        page.locator(".message.model a").evaluate_all(
            "links => links.forEach(link => link.focus())"
        )
        page.reload()
        last(page)
        check_elements(page)


def check_elements(page: Page) -> None:
    check_markdown(page.evaluate(FOUND))
    assert page.locator("#app").count() == 1


def test_a_persons_text_is_text(root: Root, visit: Visit) -> None:
    page = visit(root)
    send(page, "<img src=x onerror=alert(1)> **not bold**")
    last(page)
    expect(page.locator(".bubble")).to_have_text("<img src=x onerror=alert(1)> **not bold**")


def test_stop_ends_the_sequence_and_keeps_the_text(visit: Visit) -> None:
    with speaking("word " * 700, seconds=0.01) as root:
        page = visit(root)
        send(page, "go on")
        expect(page.locator(".markdown")).to_contain_text("word word")
        assert page.locator(".message.model").get_attribute("aria-busy") == "true"
        page.keyboard.press("Escape")
        expect(page.locator(".message.model .note")).to_have_text("Stopped.")
        assert root.steps_when_quiet() < 3500
        assert "word" in last(page)
        page.reload()
        assert "word" in last(page)


def test_a_page_that_is_left_ends_its_answer(visit: Visit) -> None:
    with speaking("word " * 700, seconds=0.01) as root:
        page = visit(root)
        send(page, "go on")
        expect(page.locator(".markdown")).to_contain_text("word word")
        page.goto("about:blank")
        assert root.steps_when_quiet() < 3500


def test_regenerate_and_edit_make_branches(root: Root, visit: Visit) -> None:
    page = visit(root)
    send(page, "first")
    answered(page, "FIRST")
    send(page, "second")
    answered(page, "SECOND")
    page.get_by_role("button", name="Regenerate").last.click()
    expect(page.locator(".branches")).to_have_text(re.compile(r"2 / 2"))
    last(page)
    # The first message, edited: what followed it stays in the other branch.
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit the message").fill("other")
    page.keyboard.press("Enter")
    answered(page, "OTHER")
    expect(page.locator(".message")).to_have_count(2)
    page.get_by_role("button", name="Version before").click()
    expect(page.locator(".message")).to_have_count(4)
    expect(page.locator(".bubble").first).to_have_text("first")
    page.reload()
    expect(page.locator(".message")).to_have_count(4)
    expect(page.locator(".branches")).to_have_count(2)


def test_the_whole_conversation_is_sent(visit: Visit) -> None:
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        if not prompts or prompts[-1] != prompt:
            prompts.append(prompt)
        return "ok"

    with speaking(answer) as root:
        page = visit(root)
        page.get_by_role("button", name="Settings of answers").click()
        page.get_by_label("System prompt").fill("Be kind.")
        page.get_by_role("button", name="Save").click()
        send(page, "one")
        last(page)
        send(page, "two")
        expect(page.locator(".message.model")).to_have_count(2)
        last(page)
    assert prompts[-1] == "[system]Be kind.[user]one[assistant]ok[user]two"


def test_settings_are_sent_and_kept(root: Root, visit: Visit) -> None:
    page = visit(root)
    page.get_by_role("button", name="Settings of answers").click()
    fields = {"Temperature": "0.5", "Top p": "0.9", "Max tokens": "3", "Seed": "7"}
    for label, value in fields.items():
        page.get_by_label(label, exact=False).fill(value)
    accessible(page)
    page.get_by_role("button", name="Save").click()
    page.reload()
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, "abcdef")
    body = json.loads(request.value.post_data or "")
    assert {key: body[key] for key in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 3, "seed": 7,
    }  # fmt: skip
    answered(page, "ABC")
    expect(page.locator(".figures")).to_contain_text("it reached its length")


def test_text_files_go_with_a_message(root: Root, visit: Visit, tmp_path: Path) -> None:
    page = visit(root)
    (tmp_path / "notes.txt").write_text("line one\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\x00")
    chooser = page.locator(".field input[type=file]")
    chooser.set_input_files([tmp_path / "picture.png"])
    expect(page.locator(".toast")).to_contain_text("picture.png is not a text file")
    chooser.set_input_files([tmp_path / "notes.txt"])
    expect(page.locator(".chips li")).to_contain_text("notes.txt")
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, "sum up")
    last(page)
    (message,) = json.loads(request.value.post_data or "")["messages"]
    assert message["content"] == "File notes.txt:\n```\nline one\n```\n\nsum up"
    expect(page.locator(".file summary")).to_contain_text("notes.txt")


def test_conversations_are_found_renamed_exported_and_deleted(
    root: Root, visit: Visit, tmp_path: Path
) -> None:
    page = visit(root)
    send(page, "about apples")
    last(page)
    page.get_by_role("link", name="New conversation").click()
    send(page, "about pears")
    last(page)
    entries = page.locator(".sidebar li a")
    expect(entries).to_have_count(2)
    page.get_by_label("Search conversations").fill("APPLES")
    expect(entries).to_have_text(["about apples"])
    page.get_by_label("Search conversations").fill("")
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Name").fill("Fruit")
    page.keyboard.press("Enter")
    expect(page.locator(".sidebar li.open a")).to_have_text("Fruit")
    with page.expect_download() as got:
        page.get_by_role("button", name="Export all").click()
    kept = tmp_path / "kept.json"
    got.value.save_as(kept)
    assert len(json.loads(kept.read_text())["conversations"]) == 2
    with page.expect_download() as got:
        page.get_by_role("button", name="Save as Markdown").click()
    assert got.value.suggested_filename == "fruit.md"
    assert Path(got.value.path()).read_text() == (
        "# Fruit\n\n## You\n\nabout pears\n\n## Model\n\nABOUT PEARS\n"
    )
    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(entries).to_have_text(["about apples"])
    page.reload()
    expect(entries).to_have_text(["about apples"])
    page.locator(".sidebar input[type=file]").set_input_files(kept)
    expect(entries).to_have_count(3)
    expect(page.locator(".toast")).to_have_text("2 imported")
    (tmp_path / "bad.json").write_text('{"conversations": [{"messages": {"a": {"parent": "b"}}}]}')
    page.locator(".sidebar input[type=file]").set_input_files(tmp_path / "bad.json")
    expect(page.locator(".toast")).to_contain_text("bad.json was not imported")
    expect(entries).to_have_count(3)


def test_an_error_is_shown_in_words_and_repeated(root: Root, visit: Visit) -> None:
    page = visit(root, expected=("400 (Bad Request)",))
    send(page, "x" * 5000)
    error = page.locator(".notice.error")
    expect(error).to_contain_text("maximum context length is 4096 tokens")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("short")
    page.keyboard.press("Enter")
    answered(page, "SHORT")


def test_a_lost_connection_is_an_error_with_a_way_on(visit: Visit) -> None:
    with speaking("word " * 700, seconds=0.01) as root:
        complaints = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "an answer failed")
        page = visit(root, expected=complaints, outlives=True)
        send(page, "go on")
        expect(page.locator(".markdown")).to_contain_text("word word")
    expect(page.locator(".notice.error")).to_be_visible()
    assert "word" in page.locator(".markdown").inner_text()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator(".banner")).to_contain_text("does not answer")


def test_a_paused_cluster_is_named_and_the_answer_goes_on(visit: Visit) -> None:
    gate = threading.Event()
    gate.set()
    with speaking("word " * 200) as root:
        root.runner.gate = gate
        page = visit(root)
        expect(page.locator(".lamp.serving")).to_be_visible()
        gate.clear()
        send(page, "go on")
        root.cluster.change(root_pb2.CLUSTER_STATE_DEGRADED, "worker pi4 was lost")
        expect(page.locator(".message .notice.wait")).to_contain_text("Worker pi4 was lost.")
        accessible(page)
        root.cluster.change(root_pb2.CLUSTER_STATE_SERVING)
        gate.set()
        assert last(page).count("word") == 200
        expect(page.locator(".notice")).to_have_count(0)


def test_a_bar_shows_how_far_the_prompt_is_read(visit: Visit) -> None:
    with speaking("ok", seconds=0.2, max_step_tokens=64) as root:
        page = visit(root)
        expect(page.locator(".lamp.serving")).to_be_visible()
        send(page, "x" * 2000)
        bar = page.locator(".reading progress[max]")
        expect(bar).to_have_attribute("max", re.compile(r"20\d\d"))
        label = page.locator(".reading span")
        expect(label).to_have_text(re.compile(r"Reading the prompt: [\d,]+ of 2,0\d\d tokens"))
        expect(label).not_to_have_text(label.inner_text())
        answered(page, "ok")
        expect(page.locator(".reading")).to_have_count(0)


def test_a_model_without_a_template_continues_a_story(visit: Visit) -> None:
    runner = FakeRunner(script(" there was a fox. It ran.", "Once"))
    with Root(runner, http=True, chat_template=None, context_size=256) as root:
        page = visit(root)
        expect(page.locator("h1")).to_have_text("Begin a story")
        send(page, "Once")
        page.wait_for_selector(".story[aria-busy=false]")
        expect(page.locator(".pieces")).to_have_text("Once there was a fox. It ran.")
        accessible(page)


def event(value: object) -> str:
    return f"data: {json.dumps(value)}\n\n"


def chunk(finish: str | None = None, **delta: str) -> str:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def answering(page: Page, *events: str, status: int = 200, **headers: str) -> None:
    """The next request for an answer gets these events instead of the root's."""
    body = "".join(events)
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=status, body=body, headers=headers),
        times=1,
    )


def test_reasoning_is_folded(root: Root, visit: Visit) -> None:
    page = visit(root)
    answering(
        page,
        *(chunk(reasoning_content="It is **late**."), chunk(content="Good night.")),
        *(chunk(finish="stop"), "data: [DONE]\n\n"),
    )
    send(page, "hello")
    answered(page, "Good night.")
    folded = page.locator(".reasoning")
    expect(folded.locator("summary")).to_contain_text("Thought")
    expect(folded.locator("strong")).to_be_hidden()
    folded.locator("summary").click()
    expect(folded.locator("strong")).to_have_text("late")
    # The model does not get its reasoning back.
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, "again")
    messages = json.loads(request.value.post_data or "")["messages"]
    assert messages[1] == {"role": "assistant", "content": "Good night."}


def test_reasoning_within_the_text_is_folded_too(visit: Visit) -> None:
    with speaking("<think>It is late.</think>\n\nGood night.") as root:
        page = visit(root)
        send(page, "hello")
        answered(page, "Good night.")
        expect(page.locator(".reasoning .markdown")).to_have_text("It is late.")


def test_progress_within_the_stream_is_shown(root: Root, visit: Visit) -> None:
    """llama.cpp's form; the stream ends without an answer, which is an error."""
    page = visit(root)
    progress = {"total": 1000, "cache": 0, "processed": 250, "time_ms": 5}
    answering(page, event({"choices": [], "prompt_progress": progress}))
    send(page, "hello")
    expect(page.locator(".notice.error")).to_contain_text("before the answer was complete")


def test_an_error_within_a_stream_keeps_the_text_and_can_be_repeated(
    root: Root, visit: Visit
) -> None:
    page = visit(root)
    error = {"message": "worker pi was lost", "type": "server_error", "code": "worker_lost"}
    answering(page, chunk(content="half an"), event({"error": error}))
    send(page, "hello")
    expect(page.locator(".notice.error")).to_contain_text("Worker pi was lost")
    expect(page.locator(".markdown")).to_have_text("half an")
    page.get_by_role("button", name="Try again").click()
    answered(page, "HELLO")
    expect(page.locator(".branches")).to_contain_text("2 / 2")


def test_a_cluster_that_is_not_ready_is_asked_again(root: Root, visit: Visit) -> None:
    page = visit(root, expected=("503",))
    body = json.dumps({"error": {"message": "the cluster is not ready"}})
    answering(page, body, status=503, **{"retry-after": "1"})
    send(page, "hello")
    answered(page, "HELLO")


def test_of_several_models_one_is_chosen(root: Root, visit: Visit) -> None:
    page = visit(root)
    models = {"data": [{"id": "small"}, {"id": "large"}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    page.locator("header select").select_option("large")
    accessible(page)
    answering(page, chunk(content="I am large."), chunk(finish="stop"))
    with page.expect_request("**/v1/chat/completions") as request:
        send(page, "hello")
    assert json.loads(request.value.post_data or "")["model"] == "large"
    answered(page, "I am large.")
    page.reload()
    expect(page.locator("header select")).to_have_value("large")


def test_keys(root: Root, visit: Visit) -> None:
    page = visit(root)
    page.fill("#text", "line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    page.keyboard.press("Enter")
    answered(page, re.compile("LINE ONE\\s*LINE TWO"))
    page.locator("#main").focus()
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_contain_text("New line")
    accessible(page)
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Edit the message")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+n")
    expect(page.locator(".message")).to_have_count(0)


def test_a_phone_has_room_for_the_chat(root: Root, visit: Visit) -> None:
    page = visit(root, viewport={"width": 360, "height": 640}, has_touch=True)
    send(page, "a long word " + "x" * 200)
    last(page)
    wider = "() => document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(wider)
    expect(page.locator(".sidebar")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    expect(page.locator(".sidebar")).to_be_visible()
    accessible(page)
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator(".sidebar")).to_be_hidden()
    for view in ("cluster", "connect"):
        page.goto(f"{root.url}/#/{view}")
        page.wait_for_selector("h1")
        assert not page.evaluate(wider), view


def test_dark_follows_the_system_and_can_be_chosen(root: Root, visit: Visit) -> None:
    shade = "() => getComputedStyle(document.body).backgroundColor"
    page = visit(root, color_scheme="dark")
    send(page, "hello")
    last(page)
    dark = page.evaluate(shade)
    accessible(page)
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(shade) == "rgb(255, 255, 255)" != dark
    accessible(page)
    page.reload()
    page.wait_for_selector("header")
    assert page.evaluate(shade) == "rgb(255, 255, 255)"
