"""Options from the command line, the environment and files; sizes as people write them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.cli import options as common
from hearth.cli.command import Command, Option, Options
from hearth.cli.commands import COMMANDS, known_settings, load
from hearth.cli.main import main
from hearth.common.errors import HearthError, Reason
from hearth.common.settings import SettingsFile, settings_files, variable
from hearth.common.sizes import format_size, parse_size


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but those of the test."""
    for name in ("HEARTH_MODEL", "HEARTH_ROOT", "HEARTH_THREADS", "HEARTH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("hearth.common.settings.SYSTEM_FILE", tmp_path / "system.toml")


def command() -> Command:
    params = [
        common.model_word(),
        Option("-m", "--model", metavar="MODEL", group="a", help="a model"),
        Option("--root", read=common.address(7716), group="a", help="a root"),
        Option("--cache-dir", default="here", group="a", help="a directory"),
        Option("--workers", several=True, read=common.address(7717), group="b", help="workers"),
        Option("--threads", read=common.threads, by_root=True, group="b", help="threads"),
        Option("--weights", choices=["q40", "f16"], group="b", help="a type"),
        Option("--stop", multiple=True, group="b", help="a text"),
        Option("--json", is_flag=True, group="b", help="print JSON"),
        common.max_tokens("tokens to make"),
    ]
    needed = (common.NEEDS_SOURCE,)
    return Command("generate", lambda _: 0, params, help="", one_of=[common.SOURCES], needed=needed)


def parsed(environ: dict[str, str], *arguments: str) -> Options:
    with pytest.MonkeyPatch.context() as patch:
        for name, text in environ.items():
            patch.setenv(name, text)
        return command().read(arguments)


def test_the_command_line_wins_over_the_environment_over_the_default() -> None:
    assert parsed({}, "--model", "m").cache_dir == "here"
    assert parsed({"HEARTH_CACHE_DIR": "there"}, "--model", "m").cache_dir == "there"
    both = parsed({"HEARTH_CACHE_DIR": "there"}, "--model", "m", "--cache-dir", "elsewhere")
    assert both.cache_dir == "elsewhere"


def test_required_options_can_come_from_the_environment() -> None:
    assert parsed({"HEARTH_MODEL": "demo"}).model == "demo"


@pytest.mark.parametrize("words", [("m",), ("--model", "m"), ("-m", "m"), ("-mm",), ("--model=m",)])
def test_the_model_is_a_word_or_an_option(words: tuple[str, ...]) -> None:
    assert parsed({"HEARTH_MODEL": "other"}, *words).model == "m"
    assert parsed({"HEARTH_ROOT": "h:1"}, *words, "--json").root is None


def test_one_of_several_can_come_from_the_environment() -> None:
    assert parsed({"HEARTH_ROOT": "here:1"}).root == "here:1"
    other = parsed({"HEARTH_ROOT": "here:1"}, "--model", "demo")
    assert (other.model, other.root) == ("demo", None)
    other = parsed({"HEARTH_MODEL": "demo"}, "--root", "here:1")
    assert (other.model, other.root) == (None, "here:1")
    for environ in ({}, {"HEARTH_ROOT": ""}):
        with pytest.raises(click.UsageError, match="give a MODEL"):
            parsed(environ)


@pytest.mark.parametrize("text", ["a:1 b:2", "a:1,b:2", " a:1 , b:2 "])
def test_lists(text: str) -> None:
    assert parsed({"HEARTH_MODEL": "m", "HEARTH_WORKERS": text}).workers == ["a:1", "b:2"]


@pytest.mark.parametrize(
    "words",
    [
        ("--workers", "a", "b:2", "--json"),
        ("--workers", "a,b:2", "--json"),
        ("--workers=a", "--json", "--workers", "b:2"),
        ("--json", "--workers", "a", "--workers", "b:2"),
    ],
)
def test_several_values_and_their_ports(words: tuple[str, ...]) -> None:
    options = parsed({"HEARTH_WORKERS": "c:3"}, "m", *words)
    assert options.workers == ["a:7717", "b:2"]
    assert options.json is True


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nas", "nas:7716"),
        ("nas:1", "nas:1"),
        ("10.0.0.1", "10.0.0.1:7716"),
        ("fe80::1", "[fe80::1]:7716"),
        ("[::1]", "[::1]:7716"),
        ("[::1]:5", "[::1]:5"),
        (":5", ":5"),
    ],
)
def test_an_address_has_a_default_port(text: str, full: str) -> None:
    assert common.address(7716)(text) == full


@pytest.mark.parametrize(("text", "value"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_flags(text: str, value: bool) -> None:
    assert parsed({"HEARTH_MODEL": "m", "HEARTH_JSON": text}).json is value


@pytest.mark.parametrize(
    ("name", "text"),
    [("HEARTH_THREADS", "many"), ("HEARTH_WEIGHTS", "q13"), ("HEARTH_JSON", "perhaps")],
)
def test_a_bad_value_names_its_variable(name: str, text: str) -> None:
    with pytest.raises(HearthError, match=f"{name}={text!r}") as error:
        parsed({"HEARTH_MODEL": "m", name: text})
    assert error.value.reason == Reason.BAD_SETTING


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("m", "--threads", "0"), "--threads is '0'; it must be in 1 to 1024"),
        (("m", "--weights", "q13"), "--weights is 'q13'; it must be one of q40, f16"),
        (("m", "n"), "too many words: n"),
        (("m", "--model", "n"), "--model and MODEL exclude each other"),
        (("m", "--root", "h"), "MODEL and --root exclude each other"),
        (("--model",), "--model needs MODEL after it"),
        (("--model", "--json"), "--model needs MODEL after it"),
        (("--root", "h", "--threads", "2"), "--threads: decided by the root at h:7716"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(click.UsageError) as error:
        parsed({}, *words)
    assert error.value.message.startswith(problem)


def test_a_value_may_look_like_an_option_of_no_command() -> None:
    assert parsed({}, "m", "--stop", "-", "--stop=--json").stop == ["-", "--json"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_are_below_the_environment(tmp_path: Path) -> None:
    text = 'cache-dir = "all"\nthreads = 3\n[generate]\nmodel = "demo"\nworkers = ["a", "b:2"]\n'
    write(tmp_path / "hearth" / "hearth.toml", text + "json = true\n[root]\nmodel = 'x'\n")
    write(tmp_path / "system.toml", '[generate]\ncache_dir = "system"\nweights = "f16"\n')
    options = parsed({"HEARTH_THREADS": "2"})
    assert (options.model, options.threads, options.cache_dir) == ("demo", 2, "all")
    assert (options.workers, options.json) == (["a:7717", "b:2"], True)
    assert options.weights == "f16"
    assert parsed({"HEARTH_ROOT": "h"}).model is None
    assert parsed({}, "--root", "h").threads == 3  # without effect, and no mistake
    chosen = write(tmp_path / "own.toml", "threads = 4\n")
    assert parsed({}, "m", "--config", str(chosen)).threads == 4
    other = parsed({"HEARTH_CONFIG": str(chosen)}, "m")
    assert (other.threads, other.cache_dir) == (4, "here")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("threads = 'many'", "threads='many' is not a value for --threads"),
        ("[generate]\nthreads = 0", "it must be in 1 to 1024"),
        ("thread = 1", "no command has an option thread; did you mean threads?"),
        ("[generate]\nmodle = 'x'", "hearth generate has no option modle; did you mean model?"),
        ("[generate]\ncache_dri = 'x'", "no option cache_dri; did you mean cache-dir?"),
        ("[genrate]\nthreads = 1", "there is no command [genrate]; did you mean generate?"),
        ("[generate]\nlease-grace = 1", "hearth generate has no option lease-grace"),
        ("[generat]\nthreads = 1", "there is no command [generat]"),
        ("threads = 2000-01-01", "must be a text, a number"),
        ("threads", "is not a TOML file"),
        ("a = " + "[" * 5000, "is not a TOML file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path / "wrong.toml", text)
    with pytest.raises(HearthError) as error:
        parsed({}, "m", "--config", str(path))
    assert problem in str(error.value)
    assert str(path) in str(error.value)
    assert error.value.reason == Reason.BAD_SETTING


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "large.toml").write_bytes(b"#" * (2 << 20))
    for name in ("absent.toml", "bytes.toml", "large.toml", "."):
        with pytest.raises(HearthError, match=r"toml|settings"):
            settings_files(str(tmp_path / name), {})
    assert settings_files("/dev/null", {}) == (SettingsFile(Path("/dev/null"), {}),)


def test_every_option_has_help_a_group_and_a_variable_of_its_own() -> None:
    for name in COMMANDS:
        options = list(load(name).settings())
        variables = [variable(option.long_name) for option in options]
        assert len(variables) == len(set(variables)), name
        for option in options:
            assert option.help and option.group, (name, option.long_name)
    assert "max-tokens" in known_settings()["chat"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hearth gen", ["generate"]),
        ("hearth chat --wei", ["--weights", "--weights-on"]),
        ("hearth chat --weights q8", ["q8_0"]),
        ("hearth completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_words_are_completed_in_a_shell(
    line: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    assert "_HEARTH_COMPLETE=bash_complete" in capsys.readouterr().out
    monkeypatch.setenv("_HEARTH_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    assert main([]) == 0
    found = [word.partition(",")[2] for word in capsys.readouterr().out.splitlines()]
    assert found == words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("4GiB", 4 << 30),
        ("1.5 GB", 1_500_000_000),
        ("300m", 300_000_000),
        ("2ki", 2048),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_size(text) >= 0


@given(st.integers(0, 1 << 50))
def test_what_is_shown_can_be_read_back_to_within_its_digits(size: int) -> None:
    shown = format_size(size)
    back = parse_size(shown)
    assert abs(back - size) <= max(1, size) * 0.06


def renamed(environ: dict[str, str], *arguments: str) -> int:
    with command().make_context("generate", ["m"]) as ctx:
        shown = command().get_help(ctx).lower()
    assert "max-tokens" in shown
    assert "steps" not in shown
    return int(parsed(environ, "m", *arguments).max_tokens)


def test_a_former_name_still_works_and_the_new_one_wins() -> None:
    assert renamed({}) == 0
    assert renamed({}, "--max-tokens", "3") == renamed({}, "--steps", "3") == 3
    assert renamed({"HEARTH_STEPS": "4"}) == renamed({"HEARTH_MAX_TOKENS": "4"}) == 4
    assert renamed({"HEARTH_STEPS": "4", "HEARTH_MAX_TOKENS": "5"}) == 5
    assert renamed({"HEARTH_STEPS": "4", "HEARTH_MAX_TOKENS": "5"}, "--steps", "6") == 6
    with pytest.raises(HearthError, match="HEARTH_STEPS='many'"):
        renamed({"HEARTH_STEPS": "many"})
