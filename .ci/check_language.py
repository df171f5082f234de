"""Checks the English of docstrings, comments, messages and documentation by simple rules.

Two kinds of findings: an opening or a word that the style guide in CONTRIBUTING.md rules out, and a
sentence of more than 25 words. What a rule cannot see is left to reviewers.

    python .ci/check_language.py [PATH ...]     # all tracked files, or those given
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
MAX_WORDS = 25

# How no docstring opens: it is a noun phrase or an imperative.
OPENING = re.compile(r"^(What|Who|Whom|Whose|How|Whether|Whatever|Whoever|Where|Why)\b")
# (pattern, what to write instead)
RULED_OUT = (
    (r"\banew\b", "again"),
    (r"\bwhoever\b", "anyone who"),
    (r"\bin vain\b", "say what timed out"),
    (r"\bin place of\b", "instead of"),
    (
        r"(?<!there )\b(is|are|was) no (?!longer\b|more than\b|less than\b|\w+er\b)\w+",
        "is not a ...",
    ),
    (r"\b(is|are|was|were|be|been) told\b", "receives, is sent, ..."),
    (r"\btells? (people|clients?|the (root|worker|client|user|log|metrics))\b", "reports, sends"),
    (r"\b(does|do|did) not serve\b", "is not ready"),
    (r"\bdealt like cards\b", "divided in turn"),
    (r"\bof all that\b", "rephrase"),
)
RULED_OUT_RE = tuple((re.compile(pattern, re.IGNORECASE), say) for pattern, say in RULED_OUT)
# Files whose words are data.
LEFT_OUT = ("native/fuzz/corpus/", "models/demo/", "tests/stories/", "LICENSE")


Text = tuple[int, str, str]  # line, kind, text


def python_texts(source: str) -> Iterator[Text]:
    """Docstrings, blocks of comments, and string literals with blanks in them (messages)."""
    tree = ast.parse(source)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docstrings.add(id(value))
                yield value.lineno, "docstring", value.value
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and id(node) not in docstrings and " " in text.strip():
            yield node.lineno, "message", text
    block: list[str] = []
    start = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("#!: ").rstrip()
        if block and token.start[0] == last + 1:
            block.append(text)
        else:
            if block:
                yield start, "comment", " ".join(block)
            block, start = [text], token.start[0]
        last = token.start[0]
    if block:
        yield start, "comment", " ".join(block)


def line_comments(source: str, mark: str) -> Iterator[Text]:
    """Blocks of whole-line and trailing comments that begin with `mark`."""
    block: list[str] = []
    start = 0
    for number, line in enumerate(source.splitlines(), 1):
        found = re.match(rf"^\s*{re.escape(mark)}+ ?(.*)$", line)
        if found:
            start = start if block else number
            block.append(found[1])
            continue
        if block:
            yield start, "comment", "\n".join(block)
            block = []
        trailing = re.search(rf"\s{re.escape(mark)} (.*)$", line)
        if trailing:
            yield number, "comment", trailing[1]
    if block:
        yield start, "comment", "\n".join(block)


def markdown_texts(source: str) -> Iterator[Text]:
    """Paragraphs, list items and cells of tables; no code, no quotations."""
    source = re.sub(
        r"^(```|~~~).*?^\1\s*$", lambda m: "\n" * m[0].count("\n"), source, flags=re.S | re.M
    )
    paragraph: list[str] = []
    start = 0
    for number, line in enumerate([*source.splitlines(), ""], 1):
        stripped = line.strip()
        starts = bool(re.match(r"([-*]|\d+\.) ", stripped))
        code = line.startswith("    ") and not paragraph
        ends = code or not stripped or stripped[0] in "|#>"
        if (ends or starts) and paragraph:
            yield start, "text", " ".join(paragraph)
            paragraph = []
        if stripped.startswith("|"):
            for cell in stripped.strip("|").split("|"):
                yield number, "text", cell
        elif not ends:
            start = start if paragraph else number
            paragraph.append(stripped)


def texts_of(path: Path) -> Iterator[Text]:
    """The prose of a file, by its kind."""
    try:
        source = path.read_text()
    except UnicodeDecodeError:
        return
    if path.suffix in (".py", ".pyi"):
        yield from python_texts(source)
    elif path.suffix in (".cpp", ".h", ".proto"):
        yield from line_comments(source, "//")
    elif path.suffix == ".md":
        yield from markdown_texts(source)
    elif path.suffix in (".yaml", ".yml", ".toml", ".sh", ".cmake") or path.name in (
        "Makefile",
        "Dockerfile",
        "CMakeLists.txt",
        "run",
    ):
        yield from line_comments(source, "#")


def findings(text: str, kind: str) -> Iterator[str]:
    """Violations of the rules in a text."""
    # Indented lines of comments are tables and formulas; command lines are not prose either.
    plain = re.sub(r"(?m)^ {2,}\S.*$", "", text) if kind == "comment" else text
    plain = re.sub(r"(?m)^ *(docker|helm|python|hearth|make|\w+=) .*$", "", plain)
    plain = re.sub(r"`[^`]*`|https?://\S+|\{[^}]*\}", "x", plain)
    if kind == "docstring" and (found := OPENING.match(plain.strip())):
        yield f"opens with {found[0]!r}"
    for pattern, say in RULED_OUT_RE:
        if found := pattern.search(plain):
            yield f"{found[0]!r}: {say}"
    if kind == "message":
        return
    for sentence in re.split(r"(?<=[.!?:;])\s+|\n\s*\n|\n\s*[-*|]", plain):
        words = re.findall(r"[A-Za-z][\w'-]*", sentence)
        if len(words) > MAX_WORDS:
            yield f"a sentence of {len(words)} words: {' '.join(words[:6])} ..."


def tracked() -> list[Path]:
    """Files of the repository, committed or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=TOP, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [TOP / name for name in listed if not name.startswith(LEFT_OUT)]


def main(arguments: list[str]) -> int:
    given = [Path(argument).resolve() for argument in arguments]
    count = 0
    for path in tracked():
        if given and not any(path == at or at in path.parents for at in given):
            continue
        if not path.is_file() or path == Path(__file__).resolve():
            continue
        for line, kind, text in texts_of(path):
            for problem in findings(text, kind):
                count += 1
                print(f"{path.relative_to(TOP)}:{line}: {kind}: {problem}")
    if count:
        print(f"{count} findings; the rules are in CONTRIBUTING.md", file=sys.stderr)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
