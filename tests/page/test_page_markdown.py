"""A model's Markdown as the page draws it: random texts in a real browser."""

from __future__ import annotations

from typing import Any

from browsing import Visit, check_markdown, speaking
from hypothesis import given, settings
from hypothesis import strategies as st

# Parts of Markdown and of attacks, which a text puts together in any way.
PARTS = [
    "a", "word ", "\n", "\n\n", "  ", "\t", "    ", "\\", "&", "&lt;", "&#x6a;", "é", "\u202e",
    "\x00", "*", "**", "_", "~~", "`", "```", "```js\n", "# ", "> ", "- ", "1. ", "- [ ] ",
    "---\n", "| a | b |\n", "|---|---|\n", "| 1 | 2 |\n", "[", "]", "(", ")", "![", "](", "<",
    ">", "</", "/>", "\"", "'", "=", "[x]: ", "[x]", "https://example.org/",
    "javascript:alert(1)", "data:text/html,x", "a@b.example", "<script>", "</script>",
    "<img src=x onerror=", "alert(1)", "<svg onload=alert(1)>", "<!--", "-->", "<style>",
    "</style>", "<iframe srcdoc=", "<a href=", "<br>", "<details open>", "</details>", "<b>",
    "<math>", "<template>", "<textarea>", "<title>", "<noscript>", "<![CDATA[", "<?",
    "<x onclick=y>", " style=", " onmouseover=", " id=app ", " class=banner ",
]  # fmt: skip
# Draws a text at once, and as it grows by `step` letters; both as elements.
DRAW = """async ([text, step]) => {
  const { Rendered } = await import(new URL("page/markdown.js", document.baseURI).href);
  const once = new Rendered().show(text);
  const growing = new Rendered();
  const letters = [...text];
  for (let end = step; end < letters.length; end += step) {
    growing.show(letters.slice(0, end).join(""));
  }
  growing.show(text);
  document.body.append(once);
  const found = [...once.querySelectorAll("*")].map((each) => [
    each.localName,
    Object.fromEntries([...each.attributes].map((a) => [a.name, a.value])),
  ]);
  once.remove();
  return [found, once.outerHTML, growing.element.outerHTML];
}"""


def test_any_text_becomes_harmless_elements_however_it_comes(visit: Visit) -> None:
    texts = st.lists(st.sampled_from(PARTS), max_size=25).map("".join)
    with speaking("ok") as root:
        page = visit(root)

        @settings(max_examples=300, deadline=None)
        @given(texts, st.integers(1, 9))
        def draw(text: str, step: int) -> None:
            found: list[Any] = page.evaluate(DRAW, [text, step])
            elements, once, growing = found
            check_markdown(elements)
            assert once == growing

        draw()
