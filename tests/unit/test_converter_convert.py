"""Conversion: the same bytes as the source, in bounded memory, and all of it or nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    is_norm,
    random_tensors,
    rotary,
    spm_metadata,
    tiny_spec,
    write_gguf,
    write_hf,
)

from hearth.cli.main import main
from hearth.converter import ModelError, mixes, open_model
from hearth.converter.convert import convert

SPEC = tiny_spec(ffn_size=100)  # w2 has rows that blocks of 32 do not fit
TENSORS = random_tensors(SPEC)


def make_source(base: Path, kind: str) -> Path:
    """A model in one of the formats that are read: hf, gguf, or gguf-q8_0."""
    if kind == "hf":
        source = write_hf(base / "source", SPEC, TENSORS, "bf16", shards=2)
        (source / "tokenizer.gguf").write_bytes(gguf_bytes(spm_metadata(), {}))
        return source
    return write_gguf(base / "source.gguf", SPEC, TENSORS, "q8_0" if kind == "gguf-q8_0" else "f32")


@pytest.mark.parametrize("weights", ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0"))
@pytest.mark.parametrize("kind", ["hf", "gguf", "gguf-q8_0"])
def test_converted_bytes_are_those_of_the_source_in_that_type(
    tmp_path: Path, kind: str, weights: str
) -> None:
    source = make_source(tmp_path, kind)
    dest = convert(str(source), tmp_path / "out", weights)
    with open_model(str(source)) as before, open_model(str(dest)) as after:
        assert after.weight_type == weights
        assert after.spec == before.spec
        for name in before.spec.tensor_names():
            stored = after.stored_type(name)
            assert stored == ("f32" if is_norm(name) else before.effective_type(name, weights))
            assert (after.read(name, stored) == before.read(name, stored)).all(), name
        assert after.stored_type("layers.0.w2") == ("f16" if weights[0] == "q" else weights)
        text = "ab the é"
        assert after.tokenizer().encode(text) == before.tokenizer().encode(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, "out"])


@pytest.mark.parametrize("mix", sorted(mixes._MIXES))
def test_a_mix_is_written_and_read_back(tmp_path: Path, mix: str) -> None:
    """Each tensor has the mix's type, in the converted model and in one that is loaded so."""
    spec = tiny_spec(hidden_size=256, head_size=64, ffn_size=256, layers=2)
    source = write_hf(tmp_path / "hf", spec, random_tensors(spec), "f16")
    made = convert(str(source), tmp_path / "made", mix)
    with open_model(str(made)) as after, open_model(str(source), mix) as loaded:
        for name in spec.tensor_names():
            kind = after.stored_type(name)
            wanted = "f32" if is_norm(name) else mixes.mixed_type(mix, spec, spec.tensor(name))
            assert kind == wanted == loaded.tensor_type(name)
            assert (after.read(name, kind) == loaded.read(name, kind)).all(), name
    assert json.loads((made / "config.json").read_text())["hearth"]["weights"] == mix


def test_a_converted_model_converts_again(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gguf")
    first = convert(str(source), tmp_path / "first", "q4_0")
    second = convert(str(first), tmp_path / "second", "q4_0")
    for name in ("model.safetensors", "tokenizer.gguf"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert json.loads((second / "config.json").read_text())["hearth"]["weights"] == "q4_0"


def test_tensors_have_the_names_and_the_order_of_hearth(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    dest = convert(str(make_source(tmp_path, "gguf")), tmp_path / "out", "f32")
    tensors = load_file(dest / "model.safetensors")
    assert list(tensors) == SPEC.tensor_names()
    for name, values in tensors.items():
        assert (values == TENSORS[name]).all(), name


def test_rope_factors_and_special_ids_are_kept(tmp_path: Path) -> None:
    stored = gguf_tensors(SPEC, TENSORS, "f32")
    stored["rope_freqs.weight"] = (0, (8,), np.arange(1, 9, dtype="<f4").tobytes())
    source = tmp_path / "source.gguf"
    source.write_bytes(gguf_bytes(gguf_metadata(SPEC) | spm_metadata(), stored))
    after = open_model(str(convert(str(source), tmp_path / "out")))
    with open_model(str(source)) as before:
        assert after.spec == before.spec
    assert np.allclose(rotary(after.spec), rotary(SPEC) / np.arange(1, 9), rtol=1e-6)
    assert (after.tokenizer().bos_id, after.tokenizer().eos_ids) == (1, {2})


def test_stories260k_converts(testdata: Path, tmp_path: Path) -> None:
    source = str(testdata / "stories260k/stories260K.gguf")
    after = open_model(str(convert(source, tmp_path / "out", "q8_0")))
    assert after.tokenizer().decode([403, 407, 261, 378]) == "Once upon a time"


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    dest = convert(str(make_source(tmp_path, "gguf")), tmp_path / "out")
    config = json.loads((dest / "config.json").read_text())
    for hearth in ({"version": 3}, 7, None):
        (dest / "config.json").write_text(json.dumps(config | {"hearth": hearth}))
        with pytest.raises(ModelError, match=r"format version .*this Hearth reads 1"):
            open_model(str(dest))


def test_an_existing_destination_is_not_touched(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gguf")
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out", "file", "link"):
        with pytest.raises(ModelError, match="exists already"):
            convert(str(source), tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ModelError, match="is not a directory; create it first"):
        convert(str(source), tmp_path / "no" / "such" / "place")


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path, "gguf")
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match=r"needs \d+ bytes, but .* has 5000 free"):
        convert(str(source), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left"), ModelError("x")]
)
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, error: Any) -> None:
    source = make_source(tmp_path, "hf")
    seen = []

    def fail(name: str, done: int, total: int) -> None:
        assert 0 < done <= total
        seen.append(name)
        if name == "layers.1.wq":
            assert any(".partial" in path.name for path in tmp_path.iterdir())
            raise error

    with pytest.raises((KeyboardInterrupt, ModelError)):
        convert(str(source), tmp_path / "out", "q4_0", fail)
    assert seen[0] == "embedding" and seen[-1] == "layers.1.wq"
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_source_that_ends_early_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path, "gguf")

    def shorten(name: str, _done: int, _total: int) -> None:
        if name == "layers.0.wq":
            os.truncate(source, source.stat().st_size // 2)

    with pytest.raises(ModelError, match=r"source\.gguf changed while in use .*bytes and has"):
        convert(str(source), tmp_path / "out", "q4_0", shorten)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path, "gguf")
    assert main(["convert", str(source), str(tmp_path / "out"), "--weights", "q8_0"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "out")
    assert err.splitlines()[-1].startswith("100% ")
    assert open_model(str(tmp_path / "out")).weight_type == "q8_0"
    assert main(["convert", str(source), str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err


# A big enough model that there is time to interrupt it, and memory that would be missed.
LARGE = tiny_spec(hidden_size=512, ffn_size=2048, vocab_size=50_000, layers=4, tied=True)
CHILD = """
import importlib, sys, time
from hearth.cli.main import main
convert = importlib.import_module("hearth.converter.convert")
whole = convert.convert
def slowly(source, dest, weights, progress, *more):
    def show(*done):
        progress(*done)
        time.sleep(0.1)
    return whole(source, dest, weights, show, *more)
convert.convert = slowly
sys.exit(main(["convert", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    numbers = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
    tensors = {name: np.resize(numbers, LARGE.tensor_shape(name)) for name in LARGE.tensor_names()}
    return write_gguf(path, LARGE, tensors, "f32")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path: Path, large: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-c", CHILD, str(large), str(tmp_path / "out"), "--weights", "q4_0"]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert child.stderr is not None
        assert child.stderr.readline()  # it writes
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130 and "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_model(tmp_path: Path, large: Path) -> None:
    """The embedding is 100 MB as f32; the conversion's own use stays under a third of that."""
    script = """
import resource, sys
from pathlib import Path
from hearth.converter.convert import convert
from hearth.converter import open_model
open_model(sys.argv[1]).tokenizer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], Path(sys.argv[2]), "q4_0")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    words = [sys.executable, "-c", script, str(large), str(tmp_path / "out")]
    result = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert large.stat().st_size > 150_000_000
    assert int(result.stdout) < 32_000  # KiB


def test_a_file_over_4_gib_is_written_and_read(tmp_path: Path) -> None:
    """Sparse: nearly all of it is a hole."""
    from hearth.converter.files import OpenFile
    from hearth.converter.readers.safetensors_file import SafetensorsWriter, read_header

    hole, tail = 5 << 30, b"the end of a large file "
    path = tmp_path / "large.safetensors"
    layout = [("hole", "U8", (hole,)), ("tail", "U8", (len(tail),))]
    writer = SafetensorsWriter(path, layout, {})
    prefix = writer.size - hole - len(tail)
    with path.open("wb") as stream:
        with pytest.raises(FileExistsError), writer:
            pass
        stream.write(writer._prefix)
        stream.seek(hole, os.SEEK_CUR)
        stream.write(tail)
    file = OpenFile(path)
    entry = read_header(file).tensors["tail"]
    assert entry.offset == prefix + hole > 1 << 32
    assert file.read(entry.offset, entry.size).tobytes() == tail
    file.close()
