"""Mistakes on the command line and broken files: one clear line each.

The line names the failure, the numbers, and what to do. It goes to stderr, nothing to stdout, and
the exit code is 1 (2 for wrong usage, with a second line that names the help).
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from converter_builders import (
    gguf_bytes,
    gguf_metadata,
    gguf_tensors,
    random_tensors,
    spm_metadata,
    tiny_spec,
    write_gguf,
)
from harness import clean_environ, free_port, hearth
from serving_fakes import EOS, FakeRunner, Root

from hearth.cli.main import main
from hearth.client.errors import from_rpc_error
from hearth.converter.packaged import demo_directory


class Command:
    """`hearth generate`, in this process: what it prints is what a process of its own would.

    An error that is not meant for people would come out of `main` as an exception, and fail a test.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def refused(self, *options: str, code: int = 1) -> str:
        """The error's one line."""
        returned = main(["generate", *options])
        printed = self._capsys.readouterr()
        return one_line(returned, printed.out, printed.err, code)


def one_line(returned: int, out: str, err: str, code: int = 1) -> str:
    """The one line that is on stderr, where nothing is on stdout and the exit code is `code`."""
    assert returned == code, err
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("hearth: ")
    return lines[0].removeprefix("hearth: ")


def refused(*arguments: str | bytes, code: int = 1) -> str:
    """The same of a process of its own."""
    ran = hearth(*arguments)
    return one_line(ran.returncode, ran.stdout, ran.stderr, code)


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in [name for name in os.environ if name.startswith("HEARTH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HEARTH_CONFIG", os.devnull)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    return Command(capsys)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the demo model that may be broken."""
    return Path(shutil.copytree(demo_directory(), tmp_path / "demo"))


def edit(path: Path, **values: object) -> None:
    """Changes keys of a JSON file; None takes one out."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


# How a model is divided.


@pytest.mark.parametrize("nodes", ["9", "10", "1000"])
def test_a_node_count_that_cannot_be_cut(generate: Command, nodes: str) -> None:
    line = generate.refused("--model", "demo", "--nodes", nodes)
    assert f"over {nodes} nodes" in line
    assert "8 query heads allow 1 to 8" in line


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ("1,2,3", "3 shares (1,2,3) for 2 nodes"),
        ("1", "1 shares (1) for 2 nodes"),
        ("0,1", "a share is 0"),
        ("1,-1", "a share is -1"),
        ("nan,1", "a share is nan"),
        ("inf,1", "a share is inf"),
    ],
)
def test_shares_that_cannot_be_cut(generate: Command, shares: str, said: str) -> None:
    assert said in generate.refused("--model", "demo", "--nodes", "2", f"--shares={shares}")


def test_nodes_and_workers_together(generate: Command) -> None:
    line = generate.refused("--model", "demo", "--nodes", "2", "--workers", "127.0.0.1:1", code=2)
    assert "--nodes" in line


# What a request asks for.


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("temperature", "-0.1", "[0, 100]"),
        ("temperature", "101", "[0, 100]"),
        ("temperature", "nan", "[0, 100]"),
        ("top-k", "-1", "[0, 4294967295]"),
        ("top-p", "0", "(0, 1]"),
        ("top-p", "1.5", "(0, 1]"),
        ("min-p", "-0.5", "[0, 1]"),
        ("min-p", "2", "[0, 1]"),
        ("repetition-penalty", "0", "(0, 10]"),
        ("repetition-penalty", "inf", "(0, 10]"),
        ("seed", "-1", "[0, 18446744073709551615]"),
        ("seed", "18446744073709551616", "[0, 18446744073709551615]"),
    ],
)
def test_sampling_out_of_range(generate: Command, option: str, value: str, allowed: str) -> None:
    line = generate.refused("--model", "demo", f"--{option}={value}")
    assert line.startswith(f"--{option} is ")
    assert allowed in line


def test_max_tokens_out_of_range(generate: Command) -> None:
    assert "-5" in generate.refused("--model", "demo", "--max-tokens=-5", "--json")


def test_an_empty_stop(generate: Command) -> None:
    assert "1 to 256" in generate.refused("--model", "demo", "--stop", "", "--json")


def test_a_prompt_longer_than_the_context(generate: Command) -> None:
    line = generate.refused(
        "--model", "demo", "--context", "8", "--prompt", "so many words " * 9, "--json"
    )
    assert "8" in line
    assert "context" in line


@pytest.mark.parametrize("text", [b"caf\xe9", b"\xff\xfe", b"\xed\xa0\x80", b"a\xc3"])
def test_a_prompt_that_is_no_utf8(text: bytes) -> None:
    ran = ("generate", "--model", "demo", "--json", "--prompt", b"good " + text)
    assert "UTF-8" in refused(*ran)


def test_invalid_utf8_elsewhere_on_the_command_line() -> None:
    assert refused("generate", "--model", b"no\xffthere")
    assert "stop text" in refused("generate", "--model", "demo", "--json", "--stop", b"\xff")
    assert refused("worker", "--listen", b"127.0.0.1\xff:0", "--cache-dir", "none")


# A running root.


def test_a_root_that_is_not_there(generate: Command) -> None:
    address = f"127.0.0.1:{free_port()}"
    line = generate.refused("--root", address, "--prompt", "Once upon a time")
    assert line.startswith(f"cannot reach a root at {address} (")


class HalfTls(grpc.RpcError):
    """The error of a call where only one end uses TLS."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "Socket closed"

    def trailing_metadata(self) -> tuple[()]:
        return ()


def test_the_advice_about_tls_is_for_the_command_and_for_python() -> None:
    message = from_rpc_error(HalfTls(), "nas:7716").message
    assert message.endswith("; use TLS on both ends or on neither (--tls, in Python tls=)")


def test_an_error_in_an_answer_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(history: tuple[int, ...]) -> int:
        if len(history) == 6:
            raise ZeroDivisionError("oh")
        return ord("x")

    with Root(FakeRunner(broken)) as root:
        assert main(["generate", "--root", root.address, "--prompt", "ab"]) == 1
        printed = capsys.readouterr()
        assert printed.out == "abxxx\n"
        said = "hearth: a step failed on the root: ZeroDivisionError: oh"
        assert any(line.startswith(said) for line in printed.err.splitlines())
        assert main(["generate", "--root", root.address, "--prompt", "a" * 200]) == 1
        assert capsys.readouterr().out == ""


def test_an_answer_without_text_still_shows_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    with Root(FakeRunner(lambda history: EOS)) as root:
        assert main(["generate", "--root", root.address, "--prompt", "ab"]) == 0
    assert capsys.readouterr().out == "ab\n"


# Which model.


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/nonexistent/model", "/nonexistent/model"),
        ("random:llama-9-9b", "llama-3-8b"),
        ("random:tinyllama-1.1b:minus", "minus"),
    ],
)
def test_a_model_that_is_not_there(generate: Command, model: str, said: str) -> None:
    assert said in generate.refused("--model", model)


def test_no_model_at_all(capsys: pytest.CaptureFixture[str], generate: Command) -> None:
    for words in ([], ["--model", ""], [""]):
        assert main(["generate", *words]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first == "hearth: give a MODEL (try demo), or --root HOST:PORT of a running root"
        assert second == "See `hearth generate --help`."


def test_misspelled_words_have_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "generate --modle demo": "did you mean --model?",
        "genrate demo": "did you mean generate?",
        "help chta": "did you mean chat?",
        "generate demo hello": "a prompt follows --prompt (-p)",
        "generate --root localhost --nodes 2": "--nodes: decided by the root at localhost:7716",
        "root demo --context many": "--context is 'many'; it must be a whole number",
        "certs init": "DIR is missing",
        "cluster dance": "ACTION is 'dance'; it must be drain",
        "cluster drian x": "did you mean drain?",
        "certs int d": "did you mean init?",
        "certs rewoke d n": "did you mean revoke?",
        "completion bsah": "did you mean bash?",
        "config genrate": "did you mean generate?",
        "root demo --weights q4o": "did you mean q40?",
        "root demo --lane mseh": "did you mean mesh?",
        "certs add d n --role opreator": "did you mean operator?",
    }
    for line, hint in wrong.items():
        assert main(line.split()) == 2
        printed = capsys.readouterr()
        assert hint in printed.err.splitlines()[0]
        assert len(printed.err.splitlines()) == 2
        assert printed.out == ""


def test_nothing_is_suggested_where_nothing_is_close(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("certs init d --nmaes x", "root demo --lane xyz", "cluster xyz", "qqq"):
        assert main(line.split()) == 2
        assert "did you mean" not in capsys.readouterr().err


def test_names_of_models_have_a_suggestion(generate: Command) -> None:
    assert "did you mean demo?" in generate.refused("--model", "dmeo")
    assert "did you mean smollm2?" in generate.refused("--model", "smolm2")
    assert "did you mean llama-3-8b?" in generate.refused("--model", "random:lama-3-8b")


def test_unknown_variables_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEARTH_THREDS", "2")
    monkeypatch.setenv("HEARTH_QQQ\n", "2")
    monkeypatch.setenv("HEARTH_MESH_SERVICE_HOST", "10.0.0.1")  # set by Kubernetes
    monkeypatch.setenv("HEARTH_PORT_7716_TCP", "tcp://10.0.0.1:7716")
    monkeypatch.setenv("HEARTH_LISTEN", "127.0.0.1:0")  # of another command
    assert main(["models"]) == 0
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == ("warning: HEARTH_QQQ\\n is not the variable of an option, and has no effect")
    assert second == (
        "warning: HEARTH_THREDS is not the variable of an option, and has no effect; did you mean "
        "HEARTH_THREADS?"
    )
    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    assert "HEARTH_THREDS is not the variable of an option" in shown
    assert "_SERVICE_HOST" not in shown


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help", "chat"], ["chat", "--help"], ["chat", "-h"]):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("Usage: hearth chat [OPTIONS] [MODEL]")
    assert main(["-V"]) == main(["--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main([]) == 2
    assert "First steps" in capsys.readouterr().out


# Where the text comes from and goes to.

STORY = ("generate", "demo", "--max-tokens", "8")


def run(*words: str, text: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "hearth.cli.main", *words],
        input=text,
        capture_output=True,
        env=clean_environ(environ),
        timeout=60,
        check=False,
    )


def test_the_prompt_comes_from_a_pipe() -> None:
    done = run(*STORY, text=b"The sea\n")
    assert done.stdout.startswith(b"The sea was")
    assert done.stdout == run(*STORY, "-p", "The sea", text=b"other").stdout
    assert b"there is no prompt" in run(*STORY).stderr
    done = run(*STORY, text=b"caf\xe9\n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not valid UTF-8 at byte 3" in done.stderr
    done = run(*STORY, text=b"x" * (5 << 20))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"standard input has more than 4194304 bytes" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal(encoding: str) -> None:
    """A character that it lacks is replaced, and nothing ends in a traceback."""
    done = run(*STORY, "-p", "Größe \N{LLAMA}", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert done.stdout.decode(encoding).startswith(
        "Größe \N{LLAMA}".encode(encoding, "replace").decode(encoding)
    )
    done = run(*STORY, "-p", "Größe", "--json", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert json.loads(done.stdout.decode(encoding))["finish_reason"] == "length"
    for locale in ("C", "POSIX"):
        assert run(*STORY, "-p", "Größe", LC_ALL=locale).returncode == 0


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (STORY, ">/dev/full"),
        (STORY, ">&-"),
        ((*STORY, "--json"), ">/dev/full"),
        (("chat", "demo", "--max-tokens", "4"), ">/dev/full"),
        (("--help",), ">/dev/full"),
        (("help", "chat"), ">/dev/full"),
        (("generate", "--help"), ">/dev/full"),
        (("-V",), ">/dev/full"),
        (("config",), ">/dev/full"),
        (("completion", "bash"), ">/dev/full"),
    ],
)
def test_output_that_cannot_be_written(words: tuple[str, ...], where: str) -> None:
    command = shlex.join([sys.executable, "-m", "hearth.cli.main", *words])
    done = subprocess.run(
        ["sh", "-c", f"echo Hello | {command} {where}"],
        capture_output=True,
        text=True,
        env=clean_environ(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hearth: ") and "standard output" in last
    assert "Traceback" not in done.stderr


def test_closed_ends_are_no_error() -> None:
    command = shlex.join([sys.executable, "-m", "hearth.cli.main", *STORY])
    for line, code in (
        (f"{command} 2>&-", 0),
        (f"{command} <&-", 0),
        (f"{command} 2>/dev/full", 0),
    ):
        done = subprocess.run(["sh", "-c", line], capture_output=True, env=clean_environ())
        assert done.returncode == code, done.stderr
    line = f"{{ {command} --max-tokens 300; echo $? >&2; }} | head -c 3"
    done = subprocess.run(["sh", "-c", line], capture_output=True, env=clean_environ())
    assert (done.stderr.split()[-1], len(done.stdout)) == (b"141", 3)
    assert b"Traceback" not in done.stderr


def test_commands_write_in_one_place() -> None:
    """cli/output.py: a print elsewhere would fail where that does not."""
    for path in (Path(__file__).parents[2] / "cli").glob("*.py"):
        assert not re.search(r"\bprint\(|click\.echo|stdout\.write", path.read_text()) or (
            path.name == "output.py"
        ), path


def test_an_empty_directory(generate: Command, tmp_path: Path) -> None:
    assert "config.json" in generate.refused("--model", str(tmp_path))


def test_an_unknown_weight_type_is_the_command_s_own_error() -> None:
    ran = hearth("generate", "--model", "demo", "--weights", "q7")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "q40" in ran.stderr
    assert "Traceback" not in ran.stderr


# Files that are truncated, foreign or mis-shaped.


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = tiny_spec()
    return write_gguf(tmp_path_factory.mktemp("gguf") / "t.gguf", spec, random_tensors(spec))


def test_the_gguf_that_the_tests_break_runs(gguf: Path) -> None:
    assert hearth("generate", "--model", str(gguf), "--max-tokens", "2").returncode == 0


@pytest.mark.parametrize("part", [0, 3, 4, 12, 100, 0.1, 0.5, 0.99])
def test_a_truncated_gguf(generate: Command, gguf: Path, tmp_path: Path, part: float) -> None:
    """Cut to so many bytes, or to that part of its length."""
    whole = gguf.read_bytes()
    broken = tmp_path / "cut.gguf"
    broken.write_bytes(whole[: int(part if part >= 1 else part * len(whole))])
    assert "cut.gguf" in generate.refused("--model", str(broken))


def test_a_gguf_of_another_architecture_or_type(generate: Command, tmp_path: Path) -> None:
    spec = tiny_spec()
    tensors = gguf_tensors(spec, random_tensors(spec), "f32")
    path = tmp_path / "other.gguf"
    metadata = gguf_metadata(spec) | spm_metadata()
    path.write_bytes(gguf_bytes(metadata | {"general.architecture": "mamba"}, tensors))
    line = generate.refused("--model", str(path))
    assert "mamba" in line
    assert "llama" in line
    name = "blk.1.ffn_up.weight"
    _, shape, data = tensors[name]
    path.write_bytes(gguf_bytes(metadata, tensors | {name: (24, shape, data)}))  # I8
    line = generate.refused("--model", str(path))
    assert name in line
    assert "is I8, which Hearth can't read" in line


def test_a_file_that_is_no_model(generate: Command, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    assert "holiday.jpg" in generate.refused("--model", str(path))
    path.rename(tmp_path / "holiday.gguf")
    assert "holiday.gguf" in generate.refused("--model", str(tmp_path / "holiday.gguf"))


@pytest.mark.parametrize("part", [0, 4, 0.001, 0.5, 0.999])
def test_a_truncated_safetensors(generate: Command, demo: Path, part: float) -> None:
    path = demo / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part if part >= 1 else part * len(whole))])
    assert "model.safetensors" in generate.refused("--model", str(demo))


def test_weights_that_are_missing(generate: Command, demo: Path) -> None:
    (demo / "model.safetensors").unlink()
    assert "safetensors" in generate.refused("--model", str(demo))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"hidden_size": 1e400}', "\x00"])
def test_a_broken_config(generate: Command, demo: Path, text: str) -> None:
    (demo / "config.json").write_text(text)
    assert "config.json" in generate.refused("--model", str(demo))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "mamba"),
        ("hidden_size", 0),
        ("hidden_size", -256),
        ("hidden_size", "256"),
        ("hidden_size", None),
        ("hidden_size", 1 << 70),
        ("num_hidden_layers", 6),  # one more than there are tensors of
        ("num_key_value_heads", 3),
        ("vocab_size", 2047),
        ("rope_theta", 0),
        ("rms_norm_eps", -1),
        ("rope_scaling", {"rope_type": "ntk", "factor": 4.0}),
        ("hidden_act", "relu"),
        ("attention_bias", True),
    ],
)
def test_a_config_that_cannot_be(generate: Command, demo: Path, key: str, value: object) -> None:
    edit(demo / "config.json", **{key: value})
    assert generate.refused("--model", str(demo))


def test_a_tokenizer_that_does_not_fit(generate: Command, demo: Path) -> None:
    """So many more tokens than the model has rows that they belong to different models.

    A few more are an addition for training: texts with them are refused, others run.
    """
    path = demo / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"<extra{n}>": 2048 + n for n in range(1000)}
    path.write_text(json.dumps(content))
    line = generate.refused("--model", str(demo))
    assert "3048" in line
    assert "2048" in line


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer(generate: Command, demo: Path, text: str) -> None:
    (demo / "tokenizer.json").write_text(text)
    assert "tokenizer.json" in generate.refused("--model", str(demo))
