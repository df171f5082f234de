"""A tokenizer in a process of its own, with limited memory and time.

Started by confined.py: it loads the tokenizer of a model, sends what the root needs to decode, and
then encodes texts. Vocabulary files come with models, and the libraries that read them run what
these say: replacements that grow a text without end, patterns that never finish. A signal ends the
process when a text takes too much computing, and the system refuses it memory beyond a limit.

Messages, over one connection: a byte for the kind, then the content.
"""

import json
import sys
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from hearth.common import system
from hearth.converter.errors import ModelError
from hearth.converter.tokenizers.base import Tokenizer

# Kinds of messages.
FACTS, NAMES, BYTES, IDS, REFUSAL = b"f", b"n", b"b", b"i", b"r"
# Seconds of computing: to load, and for a text in addition to its size.
LOAD_SECONDS = 120.0
TEXT_SECONDS = 2.0
# A slow machine encodes 50 KB a second.
SECONDS_PER_BYTE = 2e-5
# Memory to load in, and beyond what is used then.
LOAD_BYTES = 4 << 30
SPARE_BYTES = 512 << 20
# Longer tokens would be long answers: one token of 64 MiB is.
MAX_TOKEN_BYTES = 1 << 14
MAX_TABLE_BYTES = 64 << 20
# Some characters become 11 tokens by Unicode's own compatible forms.
_IDS_PER_BYTE = 16
_IDS_ALWAYS = 1 << 10


def facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """All but the tokens themselves, as JSON values."""
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_ids": sorted(tokenizer.eos_ids),
        "add_bos": tokenizer.add_bos,
        "prefix": tokenizer.prefix,
        "suffix": tokenizer.suffix,
        "chat_template": tokenizer.chat_template,
        "named_templates": dict(tokenizer.named_templates),
        "special_tokens": dict(tokenizer.special_tokens),
        "control_ids": dict(tokenizer.control_ids),
        "gap_ids": dict(tokenizer.gap_ids),
        "strip_space": tokenizer.strip_space,
    }


def table(what: str, items: Iterable[bytes]) -> bytes:
    """Byte strings of all ids: their lengths as int32, after their number, then the strings.

    Raises ModelError where one, or all together, are longer than tokens can be.
    """
    lengths = array("i")
    parts: list[bytes] = []
    total = 0
    for id, item in enumerate(items):
        total += len(item)
        if len(item) > MAX_TOKEN_BYTES or total > MAX_TABLE_BYTES:
            raise ModelError(
                f"the {what} of token {id} has {len(item)} bytes, and all so far {total}; at most "
                f"{MAX_TOKEN_BYTES} and {MAX_TABLE_BYTES} are allowed"
            )
        lengths.append(len(item))
        parts.append(item)
    return array("i", [len(lengths)]).tobytes() + lengths.tobytes() + b"".join(parts)


def encode(tokenizer: Tokenizer, request: dict[str, Any]) -> bytes:
    """The ids of a request's text or pieces as int32. Raises ModelError."""
    pieces: list[str | int] | None = request.get("pieces")
    if pieces is not None:
        ids = tokenizer.encode_pieces(pieces)
    else:
        text, parse = request["text"], request["parse_special"]
        ids = tokenizer.encode(text, add_special=False, parse_special=parse)
    most = _IDS_PER_BYTE * request["bytes"] + _IDS_ALWAYS
    if len(ids) > most:
        raise ModelError(
            f"the tokenizer makes {len(ids)} tokens of {request['bytes']} bytes; at most {most} "
            "are allowed: it is damaged or malicious"
        )
    return array("i", ids).tobytes()


def _load(source: str, pre: str | None, tokenizer_file: str | None) -> tuple[Tokenizer, str]:
    """The tokenizer, and a digest of the files that it is made from."""
    from hearth.converter.readers import open_model

    with open_model(source, pre=pre, tokenizer=tokenizer_file) as model:
        digest = _digest(model.tokenizer_source.files())
        tokenizer = model.tokenizer()
    with suppress(ModelError):  # not every vocabulary has the letter
        tokenizer.encode("a")  # tables that the first use makes are part of loading
    return tokenizer, digest


def _digest(files: Mapping[str, Path | bytes]) -> str:
    """The digest of files with their names. Raises ModelError."""
    found = xxhash.xxh3_128()
    for name, content in sorted(files.items()):
        try:
            data = content if isinstance(content, bytes) else content.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {name}: {error.strerror or error}") from None
        found.update(f"{name}\0{len(data)}\0".encode())
        found.update(data)
    return found.hexdigest()


def main() -> None:
    """Load the tokenizer of a model, and answer on descriptor argv[1].

    argv[2:]: the arguments source, pre and tokenizer of open_model, "" for None.
    """
    connection = system.handed_over(int(sys.argv[1]))
    source, pre, tokenizer_file = sys.argv[2], sys.argv[3] or None, sys.argv[4] or None
    system.leave_no_core()
    system.limit_data(LOAD_BYTES)
    system.end_after_computing(LOAD_SECONDS)
    try:
        tokenizer, digest = _load(source, pre, tokenizer_file)
        ids = range(tokenizer.vocab_size)
        names = table("name", (tokenizer.token_text(id).encode(errors="replace") for id in ids))
        texts = table("text", map(tokenizer.token_bytes, ids))
    except ModelError as error:
        connection.send_bytes(REFUSAL + str(error).encode(errors="replace"))
        return
    connection.send_bytes(FACTS + json.dumps(facts(tokenizer) | {"digest": digest}).encode())
    connection.send_bytes(NAMES + names)
    connection.send_bytes(BYTES + texts)
    del names, texts
    system.limit_data(SPARE_BYTES, more=True)
    whole = False
    while True:
        system.end_after_computing(0.0)
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if not whole and not request.get("parse_special"):
            # The tables for texts without control tokens double the memory: only where needed.
            system.end_after_computing(LOAD_SECONDS)
            system.limit_data(LOAD_BYTES)
            with suppress(ModelError):
                tokenizer.encode_pieces(["a"])
            system.limit_data(SPARE_BYTES, more=True)
            whole = True
        system.end_after_computing(request["seconds"])
        try:
            answer = IDS + encode(tokenizer, request)
        except ModelError as error:
            answer = REFUSAL + str(error).encode(errors="replace")
        except MemoryError:
            answer = REFUSAL + b"the tokenizer needs too much memory for this text"
        connection.send_bytes(answer)


if __name__ == "__main__":
    main()
