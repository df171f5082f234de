"""The demo model's text: reading, splitting into stories, the held-out part, augmentation.

Only the standard library, so that tests can read the held-out text without torch.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path

HELDOUT_BYTES = 120_000
DEVELOPMENT_BYTES = 40_000
PASSAGE_CHARACTERS = 1_400

# fmt: off
GIRLS = [
    "Lily", "Mia", "Sue", "Lucy", "Anna", "Sara", "Sarah", "Amy", "Emma", "Molly", "Jane", "Kitty",
    "Mary", "Ella", "Lisa", "Jill", "Lila", "Mandy", "Susie", "Sally",
]
BOYS = [
    "Tom", "Ben", "Tim", "Max", "Sam", "Jack", "Timmy", "Tommy", "Bob", "John", "Billy", "Bobby",
    "Joe", "Jimmy", "Fred", "Leo", "Johnny", "Mike", "Peter", "Andy",
]
# fmt: on
_NAME = re.compile(r"\b(" + "|".join(GIRLS + BOYS) + r")\b")

_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "..."})
_OPENING = re.compile(
    r"(Once upon|Once there|Once, |Once in|There once|Long ago|A long time ago|There was once"
    r"|(One|In|There|A|It|On)\b[^.!?]*\b(named|called) [A-Z])"
)
_SUBJECT = re.compile(
    r"(?:(?:Little |Mr\. |Mrs\. )?([A-Z][a-z]+)(?: and (?:his |her )?(\w+))?) "
    r"(?:was|were|is|are|had|has|loved?|loves|liked?|likes|lived?|went|wanted|want|wants)\b"
)


@dataclass(frozen=True)
class Corpus:
    """Stories, which are whole and separate, and passages, which are pieces of longer tales."""

    train: list[str]
    development: list[str]
    heldout: list[str]
    passages: list[str]


def default_text_dir() -> Path:
    """Folder of the text: beside the project, or in HEARTH_TESTDATA."""
    root = os.environ.get("HEARTH_TESTDATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "testdata"
    return (Path(root) if root else beside) / "text"


def _plain(text: str) -> str:
    """Make punctuation ASCII, also in UTF-8 that was once read as Windows-1252."""
    text = text.replace("â€™", "'").replace("â€œ", '"').replace("â€", '"')
    return text.translate(_PLAIN)


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of a text, whether the file has one per line or per block."""
    lines = (" ".join(line.split()) for line in _plain(text).split("\n"))
    return [line for line in lines if line]


def _story(text: str) -> str:
    return "\n\n".join(_paragraphs(text))


def _opens_story(paragraph: str, story: list[str]) -> bool:
    """Guess whether a paragraph begins the next story, for the file that does not mark it."""
    if not story:
        return False
    if _OPENING.match(paragraph):
        # "One day, a bird named Bo ..." may also be a second paragraph.
        return paragraph.startswith(("Once", "Long", "There once")) or len(story) > 2
    if story[-1].rstrip('"').lower().endswith("the end."):
        return True
    subject = _SUBJECT.match(paragraph)
    if subject is None or len(story) < 2 or subject[1] in {"It", "They", "He", "She", "The", "We"}:
        return False
    told = "\n".join(story)
    return not any(name and re.search(rf"\b{name}\b", told) for name in subject.groups())


def split_unmarked(text: str) -> list[str]:
    """Stories of a file in which a blank line separates paragraphs and stories alike."""
    stories: list[str] = []
    current: list[str] = []
    for paragraph in _paragraphs(text):
        if _opens_story(paragraph, current):
            stories.append("\n\n".join(current))
            current = []
        current.append(paragraph)
    return [*stories, "\n\n".join(current)]


def _take_last(stories: list[str], size: int) -> tuple[list[str], list[str]]:
    """Split off the last stories that fit into `size` bytes."""
    used, cut = 0, len(stories)
    while cut > 0 and used + len(stories[cut - 1].encode()) + 2 <= size:
        cut -= 1
        used += len(stories[cut].encode()) + 2
    return stories[:cut], stories[cut:]


def _split_validation(text_dir: Path) -> tuple[list[str], list[str], list[str]]:
    text = (text_dir / "tinystories_val.txt").read_text(encoding="utf-8")
    whole = split_unmarked(text)[1:]  # The file begins in the middle of a story.
    rest, heldout = _take_last(whole, HELDOUT_BYTES)
    train, development = _take_last(rest, DEVELOPMENT_BYTES)
    return train, development, heldout


def heldout_stories(text_dir: Path) -> list[str]:
    """The held-out stories: never trained on."""
    return _split_validation(text_dir)[2]


def _passages(text: str) -> list[str]:
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", _plain(text)))
    sentences = [s for block in blocks for s in re.split(r"(?<=[.!?])(?= )", block) if s]
    passages = [""]
    for sentence in sentences:
        if len(passages[-1]) + len(sentence) > PASSAGE_CHARACTERS:
            passages.append("")
        passages[-1] += sentence if passages[-1] else sentence.lstrip()
    return [passage for passage in passages if passage]


def load(text_dir: Path) -> Corpus:
    """Read everything; drop training stories that share a paragraph with evaluation stories."""
    marked = (text_dir / "tinystories_10k.txt").read_text(encoding="utf-8")
    lines = (text_dir / "tinystories_b.txt").read_text(encoding="utf-8")
    rest, development, heldout = _split_validation(text_dir)
    train = [_story(text) for text in marked.split("<|endoftext|>")]
    # Here a single line break ends a story and a blank line ends a paragraph.
    train += [_story(text) for text in re.split(r"(?<!\n)\n(?!\n)", lines)]
    train += rest
    hidden = {p for story in development + heldout for p in story.split("\n\n") if len(p) > 60}
    kept = [s for s in dict.fromkeys(train) if len(s) > 80 and hidden.isdisjoint(s.split("\n\n"))]
    tales = [
        (text_dir / name).read_text(encoding="utf-8") for name in ("andersen.txt", "grimms.txt")
    ]
    passages = list(dict.fromkeys(p for tale in tales for p in _passages(tale)))
    return Corpus(kept, development, heldout, passages)


def rename(story: str, generator: random.Random) -> str:
    """Give the people of a story other names of the same gender, consistently."""
    if generator.random() < 0.3:
        return story
    mapping: dict[str, str] = {}
    found = set(_NAME.findall(story))
    for names in (GIRLS, BOYS):
        present = [name for name in names if name in found]
        mapping.update(zip(present, generator.sample(names, len(present)), strict=True))
    return _NAME.sub(lambda match: mapping[match[1]], story)
