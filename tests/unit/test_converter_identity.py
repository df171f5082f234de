"""Identities of tensors: of their content, whatever times and sizes say; changes are noticed."""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
from converter_builders import Tensors, random_tensors, tiny_spec, write_gguf, write_hf

from hearth.converter import Model, ModelError, open_model
from hearth.converter.convert import convert
from hearth.converter.files import OpenFile
from hearth.converter.fingerprint import Digests
from hearth.converter.readers.random import RandomModel

SPEC = tiny_spec()
TENSORS = random_tensors(SPEC)
OTHER = random_tensors(SPEC, 1)
LONG_AGO = 10**18


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of sidecars, empty; every file counts as old enough to have one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("hearth.converter.sidecars._RACY_NS", -LONG_AGO)
    return tmp_path / "home" / "hearth" / "digests"


def identities(model: Model) -> dict[str, bytes]:
    assert model.identify()
    return {name: model.identity(name) for name in model.spec.tensor_names()}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to be digested, from now on."""
    read: list[Path] = []
    into = OpenFile.read_into

    def counted(file: OpenFile, *arguments: object) -> None:
        if threading.current_thread().name.startswith("digest"):
            read.append(file.path)
        into(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(OpenFile, "read_into", counted)
    return read


@pytest.mark.parametrize("form", ["hf", "shards", "gguf", "hearth"])
def test_equal_content_is_one_identity_and_other_content_another(tmp_path: Path, form: str) -> None:
    """Even with one name, size and time; a copy elsewhere is the same model."""

    def write(folder: str, tensors: Tensors) -> Path:
        target = tmp_path / folder / "model"
        if form == "gguf":
            target.parent.mkdir()
            return write_gguf(target.with_suffix(".gguf"), SPEC, tensors)
        source = write_hf(target, SPEC, tensors, shards=3 if form == "shards" else 1)
        if form == "hearth":
            return convert(str(source), tmp_path / folder / "made", "q8_0")
        return source

    paths = [write("a", TENSORS), write("b", OTHER), write("c", TENSORS)]
    for path in paths:
        for file in path.iterdir() if path.is_dir() else [path]:
            os.utime(file, (1, 1))
    first, second, third = (identities(open_model(str(path))) for path in paths)
    assert first == third
    assert all(first[name] != second[name] for name in first if "norm" not in name)
    assert len(set(first.values())) == len(first)


def test_random_models_have_identities_of_shape_and_seed() -> None:
    models = [RandomModel(SPEC, seed) for seed in range(3)] + [RandomModel(tiny_spec(layers=3))]
    assert len({model.identity("layers.0.wq") for model in models}) == 4
    assert RandomModel(SPEC, 1).identity("norm") == models[1].identity("norm")


def test_digests_are_those_of_the_bytes_and_kept_in_a_sidecar(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    content = os.urandom(5_000_000)
    path.write_bytes(content)
    read = count_reads(monkeypatch)
    for times in (1, 1):
        file = OpenFile(path)
        digests = Digests({file: [(0, 3_000_000), (3_000_000, 2_000_000), (17, 5)]})
        assert digests.compute()
        assert digests.of(file, (0, 3_000_000)) == xxhash.xxh3_128_digest(content[:3_000_000])
        assert digests.of(file, (17, 5)) == xxhash.xxh3_128_digest(content[17:22])
        assert len(set(read)) == times
    assert len(read) == 4  # two blocks, one, and one: only the first time
    (sidecar,) = home.iterdir()
    assert sidecar.stat().st_mode & 0o777 == 0o600


def test_a_file_that_changed_a_moment_ago_gets_no_sidecar(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could change again within one tick of its clock."""
    monkeypatch.setattr("hearth.converter.sidecars._RACY_NS", LONG_AGO)
    identities(open_model(str(write_hf(tmp_path / "model", SPEC, TENSORS))))
    assert not home.exists()


@pytest.mark.parametrize("where", ["inode", "size", "mtime_ns", "ctime_ns", "digests", "path"])
def test_a_sidecar_of_another_state_is_not_used(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    directory = write_hf(tmp_path / "model", SPEC, TENSORS)
    expected = identities(open_model(str(directory)))
    (sidecar,) = home.iterdir()
    value = json.loads(sidecar.read_text())
    place = value["state"] if where in value["state"] else value
    if where == "digests":
        place[where] = dict.fromkeys(place[where], "00" * 16)
    else:
        place[where] = 5
    sidecar.write_text(json.dumps(value))
    read = count_reads(monkeypatch)
    assert identities(open_model(str(directory))) == expected
    assert read


def no_json(path: Path) -> None:
    path.write_bytes(b"\xff{" * 1000)


def shared(path: Path) -> None:
    path.chmod(0o666)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".kept"))
    path.symlink_to(path.with_suffix(".kept"))


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [no_json, shared, fifo, link, nested])
def test_a_sidecar_that_is_damaged_or_foreign_is_not_used(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    directory = write_hf(tmp_path / "model", SPEC, TENSORS)
    expected = identities(open_model(str(directory)))
    (sidecar,) = home.iterdir()
    damage(sidecar)
    read = count_reads(monkeypatch)
    assert identities(open_model(str(directory))) == expected
    assert read


def test_sidecars_are_few(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hearth.converter.sidecars._MOST_FILES", 3)
    for number in range(6):
        identities(open_model(str(write_hf(tmp_path / str(number), SPEC, TENSORS))))
    assert len(list(home.iterdir())) == 3


def test_without_a_place_for_sidecars_all_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("")
    assert identities(open_model(str(write_hf(tmp_path / "model", SPEC, TENSORS))))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("hearth.converter.sidecars.sidecar_folder", lambda: None)
    assert identities(open_model(str(write_hf(tmp_path / "other", SPEC, TENSORS))))


def test_digesting_ends_when_asked(tmp_path: Path) -> None:
    model = open_model(str(write_hf(tmp_path / "model", SPEC, TENSORS)))
    assert not model.identify(lambda: True)
    assert identities(model)


# What changes a file: (what happens, whether its weights are other ones then).


def in_place(path: Path) -> None:
    """As cp does, and with the time of the old file."""
    times = path.stat()
    with path.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(os.urandom(100))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def mapped(path: Path) -> None:
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as memory:
        memory[-100:] = os.urandom(100)
        memory.flush()


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def longer(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


@pytest.mark.parametrize("change", [in_place, mapped, shorter, longer])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_that_changes_is_named_and_not_read(
    tmp_path: Path, change: Callable[[Path], None], shards: int
) -> None:
    directory = write_hf(tmp_path / "model", SPEC, TENSORS, shards=shards)
    model = open_model(str(directory))
    assert identities(model) and model.check_unchanged()
    file = max(directory.glob("*.safetensors"))
    change(file)
    for _ in range(2):
        with pytest.raises(ModelError, match=f"{file.name} changed .*restart the root"):
            model.check_unchanged()
    with pytest.raises(ModelError, match=f"{file.name} "):
        for name in model.spec.tensor_names():
            model.read(name, "f32")


def test_the_old_content_again_is_the_same_model(tmp_path: Path) -> None:
    directory = write_hf(tmp_path / "model", SPEC, TENSORS)
    file = directory / "model.safetensors"
    kept = file.read_bytes()
    model = open_model(str(directory))
    expected = identities(model)
    in_place(file)
    with pytest.raises(ModelError, match="its modification time kept"):
        model.check_unchanged()
    file.write_bytes(kept)
    assert model.check_unchanged()
    assert identities(model) == expected
    assert model.read("layers.0.wq", "f32").tobytes() == TENSORS["layers.0.wq"].tobytes()


def test_a_file_that_is_only_touched_stays_in_use(tmp_path: Path) -> None:
    directory = write_hf(tmp_path / "model", SPEC, TENSORS)
    model = open_model(str(directory))
    assert identities(model)
    (directory / "model.safetensors").chmod(0o600)
    os.utime(directory / "model.safetensors")
    with pytest.raises(ModelError, match="changed"):  # not looked at yet
        model.read("norm", "f32")
    assert model.check_unchanged()
    model.read("norm", "f32")


def test_a_replaced_file_is_read_on_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a download does it: the opened file is still whole."""
    directory = write_hf(tmp_path / "model", SPEC, TENSORS)
    model = open_model(str(directory))
    assert identities(model)
    file = directory / "model.safetensors"
    write_hf(tmp_path / "new", SPEC, OTHER)
    (tmp_path / "new" / "model.safetensors").replace(file)
    for _ in range(2):
        assert model.check_unchanged()
    assert caplog.text.count("model.safetensors was replaced or removed") == 1
    assert model.read("layers.0.wq", "f32").tobytes() == TENSORS["layers.0.wq"].tobytes()


def test_a_change_before_the_content_is_known_is_an_error(tmp_path: Path) -> None:
    """There is nothing to compare with."""
    directory = write_hf(tmp_path / "model", SPEC, TENSORS)
    model = open_model(str(directory))
    (directory / "model.safetensors").chmod(0o600)
    with pytest.raises(ModelError, match="changed"):
        model.identify()
    with pytest.raises(ModelError, match="changed"):
        model.check_unchanged()
