"""`make testdata`: fetch the public files that some tests read, each pinned by its SHA-256.

    python tests/testdata.py FOLDER

They are other people's work under their own licences, so they are fetched and never committed:
stories260k (MIT), llama.cpp's vocabularies with their expected ids (MIT), GPT-2's and Qwen2's
vocabularies. Llama's and Mistral's, chat templates and texts are not among them: what needs those
is listed as skipped.
"""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LLAMA_CPP = "https://raw.githubusercontent.com/ggml-org/llama.cpp/master/models"
_HUGGING_FACE = "https://huggingface.co"
_SECONDS = 60.0
# The largest is 8 MB: an address that sends more is not the file.
MOST_BYTES = 32 << 20


@dataclass(frozen=True)
class File:
    """A file: its place in the folder, where it comes from, and what it must be."""

    path: str
    url: str
    sha256: str


FILES = (
    File(
        "stories260k/stories260K.gguf",
        f"{_HUGGING_FACE}/ggml-org/models/resolve/main/tinyllamas/stories260K.gguf",
        "047bf46455a544931cff6fef14d7910154c56afbc23ab1c5e56a72e69912c04b",
    ),
    File(
        "stories260k/tok512.model",
        f"{_HUGGING_FACE}/karpathy/tinyllamas/resolve/main/stories260K/tok512.model",
        "dfff07d929db979913f166ec94a6f5ecad4c70cfed8eb5c9cbe7e464455e46f5",
    ),
    File(
        "vocab-vectors/ggml-vocab-llama-spm.gguf",
        f"{_LLAMA_CPP}/ggml-vocab-llama-spm.gguf",
        "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69",
    ),
    File(
        "vocab-vectors/ggml-vocab-llama-spm.gguf.inp",
        f"{_LLAMA_CPP}/ggml-vocab-llama-spm.gguf.inp",
        "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    ),
    File(
        "vocab-vectors/ggml-vocab-llama-spm.gguf.out",
        f"{_LLAMA_CPP}/ggml-vocab-llama-spm.gguf.out",
        "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29",
    ),
    File(
        "vocab-vectors/ggml-vocab-llama-bpe.gguf",
        f"{_LLAMA_CPP}/ggml-vocab-llama-bpe.gguf",
        "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e",
    ),
    File(
        "vocab-vectors/ggml-vocab-llama-bpe.gguf.inp",
        f"{_LLAMA_CPP}/ggml-vocab-llama-bpe.gguf.inp",
        "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    ),
    File(
        "vocab-vectors/ggml-vocab-llama-bpe.gguf.out",
        f"{_LLAMA_CPP}/ggml-vocab-llama-bpe.gguf.out",
        "118abf2034a197fc5c9dec5204dfdeee7004c7c70952ae577f66b99e212fab9b",
    ),
    File(
        "vocab-vectors/ggml-vocab-gpt-2.gguf",
        f"{_LLAMA_CPP}/ggml-vocab-gpt-2.gguf",
        "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac",
    ),
    File(
        "vocab-vectors/ggml-vocab-gpt-2.gguf.inp",
        f"{_LLAMA_CPP}/ggml-vocab-gpt-2.gguf.inp",
        "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    ),
    File(
        "vocab-vectors/ggml-vocab-gpt-2.gguf.out",
        f"{_LLAMA_CPP}/ggml-vocab-gpt-2.gguf.out",
        "48e8c4cb3ad5c37915b225f872222567c1c4dd4d66951aa53460c8d152ff6d60",
    ),
    File(
        "vocab-vectors/ggml-vocab-qwen2.gguf",
        f"{_LLAMA_CPP}/ggml-vocab-qwen2.gguf",
        "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c",
    ),
    File(
        "vocab-vectors/ggml-vocab-qwen2.gguf.inp",
        f"{_LLAMA_CPP}/ggml-vocab-qwen2.gguf.inp",
        "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    ),
    File(
        "vocab-vectors/ggml-vocab-qwen2.gguf.out",
        f"{_LLAMA_CPP}/ggml-vocab-qwen2.gguf.out",
        "de785bb305cc6fa9d43908ed5da337f853c0b79e971348fcfb9f0915a39c5363",
    ),
    File(
        "tokenizers/gpt2/encoder.json",
        f"{_HUGGING_FACE}/openai-community/gpt2/resolve/main/vocab.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    File(
        "tokenizers/gpt2/vocab.bpe",
        f"{_HUGGING_FACE}/openai-community/gpt2/resolve/main/merges.txt",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    File(
        "tokenizers/gpt2/tokenizer.json",
        f"{_HUGGING_FACE}/openai-community/gpt2/resolve/main/tokenizer.json",
        "8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6",
    ),
    File(
        "tokenizers/qwen2/vocab.json",
        f"{_HUGGING_FACE}/Qwen/Qwen2-7B-Instruct/resolve/main/vocab.json",
        "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910",
    ),
    File(
        "tokenizers/qwen2/merges.txt",
        f"{_HUGGING_FACE}/Qwen/Qwen2-7B-Instruct/resolve/main/merges.txt",
        "8831e4f1a044471340f7c0a83d7bd71306a5b867e95fd870f74d0c5308a904d5",
    ),
    File(
        "tokenizers/qwen2/tokenizer_config.json",
        f"{_HUGGING_FACE}/Qwen/Qwen2-7B-Instruct/resolve/main/tokenizer_config.json",
        "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
    ),
)


def fetch(folder: Path, files: Sequence[File]) -> list[str]:
    """Complete `folder`; a line for each file that could not be had.

    What is there and right is kept. Nothing that differs from its digest is written.
    """
    failed = []
    for file in files:
        target = folder / file.path
        if target.exists() and _digest(target.read_bytes()) == file.sha256:
            continue
        try:
            with urllib.request.urlopen(file.url, timeout=_SECONDS) as answer:
                data = answer.read(MOST_BYTES + 1)
        except OSError as error:
            failed.append(f"{file.path}: cannot fetch {file.url}: {error}")
            continue
        if len(data) > MOST_BYTES:
            failed.append(f"{file.path}: {file.url} sends more than {MOST_BYTES} bytes")
        elif (found := _digest(data)) != file.sha256:
            failed.append(
                f"{file.path}: {file.url} has SHA-256 {found}, expected {file.sha256}: "
                "the file was changed there"
            )
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            print(f"{file.path}: {len(data)} bytes")
    return failed


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    failed = fetch(Path(sys.argv[1]), FILES)
    for line in failed:
        print(f"hearth: {line}", file=sys.stderr)
    print(f"{len(FILES) - len(failed)} of {len(FILES)} files are in {sys.argv[1]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
