"""Constraints of answers: what they compile to, the tokens that they allow, what is refused."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jsonschema
import numpy as np
import pytest
from constraints import ToolTokenizer, accepts, flags, lark
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import BOS, EOS, VOCAB, ByteTokenizer

from hearth.common.errors import HearthError, Reason
from hearth.root.engine.structure import grammar
from hearth.root.engine.structure.constraint import MAX_BYTES, Constraint, Kind
from hearth.root.engine.structure.grammar import Tag
from hearth.root.engine.structure.matching import Matcher, Structures

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def structures() -> Structures:
    return Structures(ToolTokenizer())


def schema(value: object) -> Constraint:
    return Constraint(Kind.JSON_SCHEMA, json.dumps(value))


def written(matcher: Matcher, seed: int, most: int = 4000) -> str | None:
    """A random answer; None where it does not end within `most` tokens."""
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    while matcher.length is None and len(tokens) < most:
        token = int(random.choice(np.flatnonzero(flags(matcher))))
        matcher.accept(token)
        if token == EOS:
            break
        tokens.append(token)
    else:
        if matcher.length is None:
            return None
    return bytes(tokens).decode()


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"name":"Ann","age":4}', True),
        ('{"name": "Ann", "age": 4}', True),
        ('{\n  "name": "Ann",\n  "age": 4\n}', True),
        ('{"name":"Ann","age":4', False),
        ('{"name":"Annabel","age":4}', False),
        ('{"age":4}', False),
        ('{"name":"Ann","age":4.5}', False),
        ('{"name":"Ann","age":4}}', False),
        ('{"name":"Ann","age":4,"x":1}', False),
        ('{"name":"\t","age":4}', False),
        ('{"name":    "Ann","age":4}', False),
        (" {", False),
        ("", False),
    ],
)
def test_a_schema_allows_its_documents_only(
    structures: Structures, text: str, allowed: bool
) -> None:
    assert accepts(structures.matcher(schema(SCHEMA)), text) is allowed


@pytest.mark.parametrize(
    ("constraint", "yes", "no"),
    [
        (Constraint(Kind.JSON_OBJECT), ['{"a": [1, null, {"b": "ü\\n"}]}', "{}"], ["[1]", "1"]),
        (Constraint(Kind.REGEX, r"[a-z]+/\d{2}"), ["abc/12"], ["abc12", "/12", "abc/123"]),
        (Constraint(Kind.REGEX, "(yes|no)"), ["yes", "no"], ["maybe", "yesno"]),
        (lark('root ::= ("a" | "b")+ "." # GBNF'), ["abba."], ["abba", ".", "c."]),
        (lark('start: ("a" | "b")+ "."'), ["abba."], ["abba", "."]),
        (schema(True), ["1", '{"a":2}', "null"], ["", "x"]),
        (schema({"enum": ["a b", 3]}), ['"a b"', "3"], ["4", '"a  b"']),
    ],
)
def test_each_kind_of_constraint(
    structures: Structures, constraint: Constraint, yes: list[str], no: list[str]
) -> None:
    for text in yes:
        assert accepts(structures.matcher(constraint), text), text
    for text in no:
        assert not accepts(structures.matcher(constraint), text), text


def test_the_grammar_of_json_in_gbnf(structures: Structures) -> None:
    """With alternatives that are empty, escapes and character classes, as llama.cpp has them."""
    text = r"""
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
        array  ::= "[" ws (value ("," ws value)*)? "]" ws
        string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}))* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
        ws     ::= | " " | "\n" [ \t]{0,20}
    """
    text = "\n".join(line.strip() for line in text.strip().splitlines())
    assert accepts(structures.matcher(lark(text)), '{"a": [1.5, true, "x\\n\\u00e4"]\n}')
    assert not accepts(structures.matcher(lark(text)), '{"a": [1.5, true, "x\n"]}')


def test_the_end_is_allowed_only_where_the_constraint_is_met(structures: Structures) -> None:
    matcher = structures.matcher(Constraint(Kind.REGEX, "ab+"))
    assert not flags(matcher)[EOS]
    matcher.accept(ord("a"))
    assert not flags(matcher)[EOS]
    matcher.accept(ord("b"))
    assert np.flatnonzero(flags(matcher)).tolist() == [ord("b"), EOS]
    assert matcher.length is None


def test_a_constraint_that_allows_no_more_is_complete(structures: Structures) -> None:
    matcher = structures.matcher(Constraint(Kind.REGEX, "ab"))
    matcher.accept(ord("a"))
    assert matcher.length is None
    matcher.accept(ord("b"))
    assert matcher.length == 2


def test_a_token_that_is_not_allowed_is_an_error(structures: Structures) -> None:
    matcher = structures.matcher(Constraint(Kind.REGEX, "ab"))
    with pytest.raises(HearthError, match="after 0 tokens") as caught:
        matcher.accept(ord("x"))
    assert caught.value.reason == Reason.INVALID_ARGUMENT


@given(st.integers(0, 1 << 32), st.lists(st.integers(0, VOCAB + 1), max_size=4), st.integers(0, 9))
def test_a_mask_after_drafts_is_that_of_the_answer_with_them(
    structures: Structures, seed: int, odd: list[int], count: int
) -> None:
    constraint = schema(SCHEMA)
    answer = written(structures.matcher(constraint), seed)
    assert answer is not None
    tokens = list(answer.encode())
    matcher, plain = structures.matcher(constraint), structures.matcher(constraint)
    for begin, token in enumerate(tokens):
        drafts = tokens[begin : begin + count]
        ahead = structures.matcher(constraint)
        for each in tokens[: begin + count]:
            ahead.accept(each)
        matcher.mask_after(drafts + odd)  # also of tokens that cannot follow
        if ahead.length is None:
            assert np.array_equal(matcher.mask_after(drafts), ahead.mask())
        assert np.array_equal(matcher.mask(), plain.mask())
        matcher.accept(token)
        plain.accept(token)


def test_the_only_text_that_may_follow_is_forced(structures: Structures) -> None:
    matcher = structures.matcher(schema(SCHEMA))
    assert matcher.forced() == ()  # one character is not worth a draft
    for token in b'{"':
        matcher.accept(token)
    assert bytes(matcher.forced()) == b'name"'
    matcher.accept(ord("n"))
    assert bytes(matcher.forced()) == b'ame"'
    for token in b'ame":"Ann","age":4}':
        matcher.accept(token)
    assert matcher.forced() == ()
    assert structures.matcher(Constraint(Kind.REGEX, "(ab|cd)ef")).forced() == ()
    assert bytes(structures.matcher(Constraint(Kind.REGEX, "abc[d-f]")).forced()) == b"abc"


def test_answers_of_one_constraint_do_not_share_their_state(structures: Structures) -> None:
    one, other = (structures.matcher(Constraint(Kind.REGEX, "ab")) for _ in range(2))
    one.accept(ord("a"))
    assert flags(other)[ord("a")]
    assert not flags(one)[ord("a")]


def test_control_tokens_are_not_text(structures: Structures) -> None:
    mask = flags(structures.matcher(Constraint(Kind.REGEX, r"(.|\n)*")))
    assert mask[ord("x")]
    assert mask[EOS]
    assert not mask[BOS]
    assert not mask[VOCAB]


@pytest.mark.parametrize("marker", ["</think>", "<|tool|>"])
def test_text_before_the_constraint(structures: Structures, marker: str) -> None:
    tokens = [VOCAB] if marker == "<|tool|>" else list(marker.encode())
    constraint = Constraint(Kind.REGEX, "[0-9]+", after=marker)
    assert accepts(structures.matcher(constraint), [*b"any < text\n", *tokens, *b"42"])
    assert accepts(structures.matcher(constraint), [*tokens, *b"42"])
    assert not accepts(structures.matcher(constraint), [*b"42"])
    assert not accepts(structures.matcher(constraint), [*tokens, *b"x"])


@pytest.mark.parametrize("control", [False, True])
def test_tags_in_free_text(structures: Structures, control: bool) -> None:
    """The trigger of a tag, once it is written, must be followed by the tag."""
    trigger = "<|tool|>" if control else "<call"
    tags = [
        Tag(trigger, f"{trigger}=add>", [grammar.json_rule({"type": "integer"})], "</call>"),
        Tag(trigger, f"{trigger}=say>", ["/[a-z]+/"], "</call>"),
    ]
    controls = ToolTokenizer().control_ids
    head = [VOCAB] if control else list(b"<call")

    def allowed(*parts: str, **limits: Any) -> bool:
        text = grammar.tagged(tags, controls, **limits)
        tokens = [token for part in parts for token in (head if part == "HEAD" else part.encode())]
        return accepts(structures.matcher(lark(text)), tokens)

    assert allowed("no call at all, < and <cal\n")
    assert allowed("well: ", "HEAD", "=add>12</call>", " and ", "HEAD", "=say>hi</call>", "!")
    assert not allowed("well: ", "HEAD", "=add>twelve</call>")
    assert not allowed("well: ", "HEAD", "=other>12</call>")
    assert not allowed("well: ", "HEAD")
    assert not allowed("no call", least=1)
    assert allowed("a call ", "HEAD", "=add>1</call>", least=1)
    assert allowed("HEAD", "=add>1</call>", free=False, least=1, most=1)
    assert not allowed(" ", "HEAD", "=add>1</call>", free=False, least=1, most=1)
    assert not allowed("HEAD", "=add>1</call>", " ", free=False, least=1, most=1)
    twice = ("HEAD", "=add>1</call>", "HEAD", "=say>x</call>")
    assert not allowed(*twice, free=False, least=1, most=1)
    assert allowed(*twice, free=False, least=1)
    assert allowed(*twice, free=False, least=1, most=2)


@given(st.text(max_size=20))
def test_literal_text_in_grammars(text: str) -> None:
    structures = Structures(ByteTokenizer())
    rule = grammar.literal(text, {})
    matcher = structures.matcher(lark(f'{grammar.HEADER}start: "[" {rule} "]"\n'))
    assert accepts(matcher, f"[{text}]")


def test_a_tag_begins_with_its_trigger() -> None:
    with pytest.raises(ValueError, match="does not begin with"):
        Tag("<a", "<b")


@pytest.mark.parametrize(
    ("constraint", "problem"),
    [
        (Constraint(Kind.JSON_SCHEMA, "{"), "cannot be read as JSON"),
        (Constraint(Kind.JSON_SCHEMA, "[" * 5000), "cannot be read as JSON"),
        (Constraint(Kind.JSON_SCHEMA, "[1]"), "is a JSON object"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"not": {"type": "array"}}), "not"),
        (schema({"if": {"type": "array"}, "then": {"minItems": 2}}), "if"),
        (schema({"type": "string", "format": "unheard-of"}), "unheard-of"),
        (schema({"type": "strin"}), "strin"),
        (schema({"$ref": "https://example.com/schema"}), "example.com"),
        (schema({"$ref": "#"}), "no text matches it"),
        (schema({"type": "string", "pattern": "("}), "regex"),
        (schema({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (Constraint(Kind.REGEX, "("), "unclosed"),
        (Constraint(Kind.REGEX, r"(a)\1"), "backreference"),
        (lark("root ::= other"), "other"),
        (lark("answer ::= 'a'"), "neither GBNF nor Lark"),
        (lark("something else"), "neither GBNF nor Lark"),
        (lark("root ::= " + "(" * 5000), "nested too deeply"),
        (lark("start: " + "(" * 5000), "too deeply nested"),
        (lark("start: <|unknown|>"), "unknown special token"),
        (lark("\n" * 60_000 + "x"), "neither GBNF nor Lark"),
        (lark("root ::= a\n" + "".join(f"a{i} ::= a\n" for i in range(5000))), "5001 rules"),
    ],
)
def test_what_cannot_be_enforced_is_refused(
    structures: Structures, constraint: Constraint | None, problem: str
) -> None:
    assert constraint is not None
    with pytest.raises(HearthError, match=problem) as caught:
        structures.matcher(constraint)
    assert caught.value.reason == Reason.INVALID_ARGUMENT
    assert caught.value.metadata["field"] == "constraint"
    assert len(caught.value.message) < 600


def test_a_constraint_is_of_limited_size() -> None:
    with pytest.raises(HearthError, match=f"at most {MAX_BYTES}") as caught:
        Constraint(Kind.REGEX, "a" * (MAX_BYTES + 1), field="response_format")
    assert caught.value.metadata["field"] == "response_format"
    with pytest.raises(HearthError, match="not valid UTF-8"):
        Constraint(Kind.REGEX, "\ud800")
    with pytest.raises(HearthError, match="is empty"):
        Constraint(Kind.GRAMMAR, " ")


EXPLOSIONS: Mapping[str, Constraint] = {
    "properties": schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}
    ),
    "all of any": schema(
        {
            "allOf": [
                {"anyOf": [{"properties": {f"k{j}_{i}": {"type": "integer"}}} for i in range(8)]}
                for j in range(8)
            ]
        }
    ),
    "and": lark("start: A\nA: " + " & ".join(f"/(.*{c}.{{10}})/" for c in "abcdefgh")),
    "references": schema(
        {
            "$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(30)}
            | {"a30": {"type": "integer"}},
            "$ref": "#/$defs/a0",
        }
    ),
    "repeats": Constraint(Kind.REGEX, "((a{1,1000}){1,1000}){1,1000}"),
    "states": Constraint(Kind.REGEX, "[ab]*a[ab]{400}"),
    "ambiguous": lark('start: e\ne: e e | "a" | e e e |'),
}


@pytest.mark.parametrize("name", EXPLOSIONS)
def test_constraints_that_explode_end_with_an_error_or_an_answer(
    structures: Structures, name: str
) -> None:
    try:
        matcher = structures.matcher(EXPLOSIONS[name])
        written(matcher, 1, 2000)
    except HearthError as error:
        assert error.reason == Reason.INVALID_ARGUMENT
        assert "cannot be enforced" in error.message


@pytest.mark.parametrize("seed", range(20))
def test_random_answers_are_valid(structures: Structures, seed: int) -> None:
    wanted = {
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 500},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "text": {"type": "string", "maxLength": 8},
            "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        },
        "required": ["id", "tags", "text"],
        "additionalProperties": False,
    }
    text = written(structures.matcher(schema(wanted)), seed)
    assert text is not None
    jsonschema.validate(json.loads(text), wanted)


def test_blanks_are_bounded(structures: Structures) -> None:
    """A model that prefers blanks comes to an end all the same."""
    matcher = structures.matcher(schema({"type": "array", "items": {"enum": [1]}, "maxItems": 2}))
    tokens: list[int] = []
    while matcher.length is None:
        allowed = np.flatnonzero(flags(matcher))
        blank = [token for token in allowed if token < 256 and chr(token).isspace()]
        token = int(blank[0] if blank else allowed[0])
        if token == EOS:
            break
        matcher.accept(token)
        tokens.append(token)
        assert len(tokens) < 400
    assert json.loads(bytes(tokens)) in ([], [1], [1, 1])
    assert max(map(len, re.findall(rb"\s+", bytes(tokens)))) <= 44


def test_a_vocabulary_without_an_end(structures: Structures) -> None:
    tokenizer = ByteTokenizer()
    tokenizer.eos_ids = frozenset()
    endless = Structures(tokenizer)
    matcher = endless.matcher(Constraint(Kind.REGEX, "ab?"))
    matcher.accept(ord("a"))
    assert np.flatnonzero(flags(matcher)).tolist() == [ord("b")]
    assert not matcher.allows(VOCAB)


def test_the_library_is_loaded_with_the_first_constraint_only() -> None:
    """A root without constrained answers has no memory for them."""
    code = (
        "import sys, hearth.root.app, hearth.root.api.http.server, hearth.root.api.http.requests\n"
        "assert 'llguidance' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
