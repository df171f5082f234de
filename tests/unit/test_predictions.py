"""Predictions of speed: by hand, against published measurements, and what a plan refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from converter_builders import llama_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from hearth.cli.main import main
from hearth.common.errors import HearthError
from hearth.converter.readers.random import RandomModel, random_spec
from hearth.converter.spec import ModelSpec
from hearth.root.planning.catalogue import CATALOGUE, LINKS
from hearth.root.planning.cost import (
    Work,
    calibrate,
    compute_seconds,
    payload_bytes,
    sync_seconds,
    work_of,
)
from hearth.root.planning.devices import device_text, read_devices
from hearth.root.planning.layout import Layout
from hearth.root.planning.machines import Machine
from hearth.root.planning.planner import make_plan
from hearth.root.planning.predict import Choices, Prediction
from hearth.root.planning.search import Search, advice

# Compute in ms per token, by the number of devices, of distributed-llama's published tables: Q40
# weights. Only columns 1 and 2 are fitted.
PUBLISHED = {
    ("pi5", "7b"): {1: 434.84, 2: 257.78, 4: 163.42},
    ("pi5", "8b"): {1: 556.67, 2: 362.73, 4: 267.62},
    ("pi4", "7b"): {1: 1307.94, 2: 739.00, 4: 458.81, 8: 296.69},
    ("c3d-highcpu-30", "7b"): {1: 101.06, 2: 61.50, 4: 40.25},
    ("c3d-highcpu-30", "13b"): {1: 182.88, 2: 107.12, 4: 66.25},
    ("c3d-highcpu-30", "70b"): {1: 907.25, 2: 475.50, 4: 264.00},
}
# Beyond 5 %: a is a small difference of two measured times, so 1 % in either moves it by a tenth.
LOOSER = {("pi4", "7b", 8): 0.055}


def llama_2(heads: int, kv_heads: int, ffn_size: int, layers: int) -> ModelSpec:
    return llama_spec(
        name="llama-2",
        heads=heads,
        kv_heads=kv_heads,
        head_size=128,
        ffn_size=ffn_size,
        layers=layers,
        hidden_size=128 * heads,
        vocab_size=32000,
        context_size=4096,
        norm_epsilon=1e-5,
        tied=False,
    )


SPECS = {
    "7b": llama_2(32, 32, 11008, 32),
    "13b": llama_2(40, 40, 13824, 40),
    "70b": llama_2(64, 8, 28672, 80),
    "8b": random_spec("llama-3-8b"),
}


def whole_work(spec: ModelSpec, nodes: int = 1) -> Work:
    """Of the node with the most."""
    plan = make_plan(spec, RandomModel(spec, weights="q4_0").tensor_type, Layout.tensor(nodes))
    return max((work_of(node, spec) for node in plan.nodes), key=lambda work: work.bytes)


def fitted(kind: str, model: str) -> Machine:
    """The machine that the columns of 1 and 2 devices describe."""
    times = PUBLISHED[kind, model]
    read, fixed = calibrate(whole_work(SPECS[model]), times[1] / 1e3, times[2] / 1e3)
    return replace(CATALOGUE[kind], read_bandwidth=read, layer_seconds=fixed)


@pytest.mark.parametrize(
    ("kind", "model", "nodes"),
    [(*key, nodes) for key, times in PUBLISHED.items() for nodes in times if nodes > 2],
)
def test_compute_on_4_and_8_devices_follows_from_1_and_2(kind: str, model: str, nodes: int) -> None:
    measured = PUBLISHED[kind, model][nodes] / 1e3
    predicted = compute_seconds(whole_work(SPECS[model], nodes), fitted(kind, model), 1)
    assert predicted == pytest.approx(measured, rel=LOOSER.get((kind, model, nodes), 0.05))


@pytest.mark.parametrize("kind", ["pi4", "pi5", "c3d-highcpu-30"])
def test_catalogue_has_the_fit_of_the_published_7b(kind: str) -> None:
    machine = fitted(kind, "7b")
    assert CATALOGUE[kind].read_bandwidth == pytest.approx(machine.read_bandwidth, rel=0.02)
    assert CATALOGUE[kind].layer_seconds == pytest.approx(machine.layer_seconds, rel=0.02)


def test_other_models_follow_from_the_7b_of_the_same_machine() -> None:
    # (13B on 4 and 8, 70B on 8: of 10 % at most the fixed work of wider layers is the reason.)
    for model, nodes, measured in (("13b", 4, 746.88), ("13b", 8, 460.8), ("70b", 8, 2121.94)):
        predicted = compute_seconds(whole_work(SPECS[model], nodes), CATALOGUE["pi4"], 1)
        assert predicted * 1e3 == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize(("one", "two"), [(1.0, 1.0), (1.0, 0.4), (1.0, float("nan")), (1.0, 2.0)])
def test_no_fit_to_times_that_no_machine_has(one: float, two: float) -> None:
    with pytest.raises(ValueError, match="two must take less"):
        calibrate(whole_work(SPECS["7b"]), one, two)


def test_work_of_a_llama_by_hand() -> None:
    work = whole_work(SPECS["7b"])
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 32000 * 4096
    assert work.products == matrices
    assert work.bytes == matrices * 18 // 32 + 65 * 4096 * 4  # q4_0: 18 bytes for 32; f32 norms
    assert work.read(8) == work.read(1)
    assert work.head_products == 32000 * 4096
    assert work.multiplied(128, 1) == 128 * matrices - 127 * 32000 * 4096


def test_few_rows_read_only_the_experts_that_they_use() -> None:
    spec = random_spec("mixtral-8x7b")
    work = whole_work(spec)
    experts = 32 * 8 * 3 * 4096 * 14336
    assert work.expert_products == experts
    assert work.multiplied(2) == pytest.approx(2 * (work.products + experts / 4))
    assert work.read(1) == pytest.approx(work.bytes + experts * 18 / 32 / 4)
    assert work.read(1) < work.read(2) < work.read(8) < work.bytes + work.expert_bytes


def test_sync_over_two_gigabit_machines_by_hand() -> None:
    link = LINKS["gigabit"]
    payload = payload_bytes(4096, 1, "f32")
    assert payload == 16384
    assert sync_seconds([link], payload, "mesh") == 0
    direct = 100e-6 + (16384 + 100) * 8 / 941e6
    assert sync_seconds([link] * 2, payload, "mesh") == pytest.approx(direct)
    assert sync_seconds([link] * 4, payload, "grpc") > sync_seconds([link] * 4, payload, "mesh")
    assert payload_bytes(4096, 2, "q80") == 2 * 4096 * 36 / 32


def search(model: str = "llama-3-8b", **choices: object) -> Search:
    spec = random_spec(model)
    return Search(
        spec,
        RandomModel(spec).tensor_type,
        replace(Choices(context=2048), **choices),  # type: ignore[arg-type]
    )


def machines(kind: str, count: int, link: str = "gigabit") -> list[Machine]:
    return [replace(CATALOGUE[kind], name=f"{kind}-{i}", link=LINKS[link]) for i in range(count)]


def named(found: list[Prediction], layout: tuple[int, ...]) -> Prediction:
    return next(each for each in found if each.layout.ranks == layout)


def test_layouts_of_four_equal_machines() -> None:
    found = search().best(machines("pi5", 4))
    assert {each.layout.ranks for each in found} == {
        (1,), (2,), (1, 1), (3,), (1, 1, 1), (4,), (2, 2), (1, 1, 1, 1),
    }  # fmt: skip
    tensor, pipeline = named(found, (4,)), named(found, (1, 1, 1, 1))
    assert tensor.decode > 2 * named(found, (1,)).decode
    # One sequence is in one stage at a time; several keep all stages busy.
    assert pipeline.decode == pytest.approx(named(found, (1,)).decode, rel=0.02)
    assert pipeline.decode_many > 1.5 * named(found, (1,)).decode_many
    assert [each.decode for each in found] == sorted((e.decode for e in found), reverse=True)


def test_slow_links_suit_a_pipeline() -> None:
    found = search().best(machines("pc-ddr4", 3, "weak-wifi"))
    assert named(found, (1, 1, 1)).decode > 3 * named(found, (3,)).decode
    assert named(found, (3,)).limit == "bandwidth"
    assert named(found, (1,)).limit == "reading"


def test_advice_leaves_out_a_slow_machine_and_asks_for_a_switch() -> None:
    some = [*machines("pi5", 2), replace(CATALOGUE["pi4"], name="old", link=LINKS["wifi"])]
    lines = advice(search(), some, None)
    assert any(line.startswith("leave out old: ") for line in lines)
    wireless = machines("pi5", 3, "wifi")
    assert any("a switch and cables" in line for line in advice(search(), wireless, None))


def test_advice_where_the_model_does_not_fit() -> None:
    some = machines("pi5", 3)
    large = search("llama-3.1-70b")
    (line,) = advice(large, some, None)
    count = int(line.split()[1])
    assert line == f"add {count} more of pi5: then it fits"
    enough = [*some, *(replace(some[0], name=f"more-{i}") for i in range(count))]
    assert any(each.fits for each in large.of(enough))
    assert not any(each.fits for each in large.of(enough[:-1]))


def test_smaller_weights_fit_where_the_stored_ones_do_not() -> None:
    spec = random_spec("llama-3-8b")
    stored = Search(spec, RandomModel(spec, weights="f16").tensor_type, Choices(context=2048))
    small = RandomModel(spec, weights="q4_k_m").tensor_type
    assert advice(stored, machines("pi5", 1), small) == ["use --weights q4_k_m: it fits"]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(CATALOGUE)), min_size=1, max_size=3),
    st.sampled_from(sorted(LINKS)),
    st.sampled_from(["f32", "f16", "q80"]),
    st.sampled_from(["mesh", "grpc"]),
)
def test_predictions_of_any_machines(
    kinds: list[str], link: str, sync_type: str, lane: str
) -> None:
    some = [
        replace(CATALOGUE[kind], name=f"{kind}-{i}", link=LINKS[link])
        for i, kind in enumerate(kinds)
    ]
    found = search("tinyllama-1.1b", sync_type=sync_type, lane=lane).best(some)
    assert {len(each.machines) for each in found} == set(range(1, len(some) + 1))
    for each in found:
        assert each.machines[0] == some[0]
        assert each.decode == pytest.approx(1 / (each.compute_seconds + each.transfer_seconds))
        assert 0 < each.decode <= each.decode_many * 1.001
        assert each.prefill > 0
        assert len(each.memory_bytes) == len(each.machines) == len(each.shares)


def test_more_bandwidth_and_less_latency_never_slow_a_layout() -> None:
    slow, fast = machines("pi5", 3, "100-megabit"), machines("pi5", 3, "gigabit")
    pairs = zip(search().of(slow), search().of(fast), strict=True)
    for one, other in pairs:
        assert one.layout == other.layout
        assert one.decode < other.decode
        assert one.prefill <= other.prefill


def test_a_gpu_in_a_devices_file() -> None:
    (own,) = read_devices('[[device]]\nkind = "rtx-4090"\nsubmit_ms = 0.05\n', "home.toml")
    assert own == replace(CATALOGUE["rtx-4090"], name="rtx-4090", submit_seconds=0.05e-3)
    (again,) = read_devices(device_text(own), "home.toml")
    assert again.submit_seconds == own.submit_seconds
    assert "submit_ms" not in device_text(CATALOGUE["pi5"])
    # As one of 45 GB/s per 100 of its data sheet, it reads 3.9 GB of Llama 3 8B 115 times a second.
    assert own.read_bandwidth == pytest.approx(453.6e9)


GOOD = '[[device]]\nkind = "pi5"\ncount = 2\nname = "pi"\nmemory = "6GiB"\n'


def test_devices_of_a_file() -> None:
    text = GOOD + (
        '[[device]]\nname = "nas"\nkind = "n100"\nread_gb_per_second = 12.5\n'
        "link = { latency_ms = 0.5, send_mbit = 50, receive_mbit = 80 }\n"
    )
    one, two, nas = read_devices(text, "home.toml")
    assert (one.name, two.name, one.memory_bytes) == ("pi1", "pi2", 6 << 30)
    assert nas.read_bandwidth == 12.5e9
    assert (nas.link.latency_seconds, nas.link.send_bandwidth) == (0.5e-3, 50 * 125e3)


def test_device_text_reads_back() -> None:
    machine = replace(CATALOGUE["n100"], name='a "b"')
    (again,) = read_devices(device_text(machine), "probe")
    assert again == replace(machine, kind="own")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no \\[\\[device\\]\\]"),
        ("device = 3", "no \\[\\[device\\]\\]"),
        ("device = [3]", "device 1: it must be a table"),
        ("devices = []", "unknown key 'devices'; did you mean device"),
        ("[[device", "not a TOML file"),
        ("[[device]]", "neither name nor kind"),
        ('[[device]]\nname = "x"', "read_gb_per_second, .*memory missing"),
        ('[[device]]\nkind = "pi6"', "'pi6' is not in the catalogue"),
        ('[[device]]\nkind = "pi5"\nmemroy = "1GiB"', "'memroy'; did you mean memory"),
        ('[[device]]\nkind = "pi5"\nmemory = "-1GiB"', "memory is '-1GiB'"),
        ('[[device]]\nkind = "pi5"\nmemory = 8', "memory is 8; it must be a size"),
        ('[[device]]\nkind = "pi5"\nmemory = "1kB"', "bytes of memory must be between"),
        ('[[device]]\nkind = "pi5"\ncount = 0', "count is 0"),
        ('[[device]]\nkind = "pi5"\ncount = true', "count is True"),
        ('[[device]]\nkind = "pi5"\ncount = 100000', "count is 100000"),
        ('[[device]]\nkind = "pi5"\nread_gb_per_second = -3', "read_gb_per_second is -3"),
        ('[[device]]\nkind = "pi5"\nread_gb_per_second = nan', "read_gb_per_second is nan"),
        ('[[device]]\nkind = "pi5"\nread_gb_per_second = inf', "read_gb_per_second is inf"),
        ('[[device]]\nkind = "pi5"\nprefill_gmacs = 1e12', "prefill_gmacs is"),
        ('[[device]]\nkind = "rtx-4090"\nsubmit_ms = -1', "submit_ms is -1"),
        ('[[device]]\nkind = "rtx-4090"\nsubmit_ms = 1001', "submit_ms is 1001"),
        ('[[device]]\nkind = "rtx-409"', "did you mean rtx-4090"),
        (f'[[device]]\nkind = "pi5"\nlayer_ms = {"9" * 400}', "layer_ms"),
        ('[[device]]\nkind = "pi5"\nlayer_ms = "1"', "layer_ms is '1'; it must be a number"),
        ('[[device]]\nkind = "pi5"\nlink = "gigabyte"', "'gigabyte' is not in the catalogue"),
        ('[[device]]\nkind = "pi5"\nlink = 5', "link is 5"),
        ('[[device]]\nkind = "pi5"\nlink = {latency_ms = 1}', "send_mbit, receive_mbit of link"),
        (
            '[[device]]\nkind = "pi5"\nlink = {latency_ms = -1, send_mbit = 1, receive_mbit = 1}',
            "latency_ms is -1",
        ),
        ('[[device]]\nkind = "pi5"\n' * 2, "2 devices are named pi5"),
        ('[[device]]\nkind = "pi5"\nname = "a\\u001bb"', "printable"),
    ],
)
def test_bad_devices_file(text: str, problem: str) -> None:
    with pytest.raises(HearthError, match=problem) as raised:
        read_devices(text, "home.toml")
    assert "home.toml" in raised.value.message


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert read_devices(text, "x")
    except HearthError as error:
        assert error.message


def test_plan_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "home.toml"
    file.write_text(GOOD)
    command = ["plan", "random:llama-3-8b", "--devices", str(file)]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["options"] for each in result["layouts"]] == [
        "--parallel tensor", "alone", "--parallel pipeline",
    ]  # fmt: skip
    assert all(each["fits"] for each in result["layouts"])
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "--parallel tensor (pi1, pi2)" in shown
    assert main(["plan", "random:llama-3.1-70b", "--devices", str(file)]) == 3
    assert "too little memory: pi1, pi2" in capsys.readouterr().out


def test_plan_command_names_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.toml")
    assert main(["plan", "random:llama-3-8b", "--devices", missing]) == 2
    assert missing in capsys.readouterr().err


def test_probe_prints_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--probe", "--threads", "1"]) == 0
    (machine,) = read_devices(capsys.readouterr().out, "probe")
    assert machine.read_bandwidth > 0
    assert machine.prefill_rate > 0
