"""Nodes that compute on a GPU: the demo's text in every layout, families against transformers.

Any Vulkan driver serves; Mesa's lavapipe computes on the CPU.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import family_models
import family_parity
import gguf_families
import known_answers
import numpy as np
import perplexity
import pytest
from family_parity import Case
from harness import ServiceProcess, WorkerProcess, hearth

from hearth import _native
from hearth.client import Client
from hearth.common import devices, probe
from hearth.common.errors import HearthError, Reason
from hearth.common.metrics import WorkerMetrics
from hearth.common.speeds import Speeds
from hearth.converter import open_model
from hearth.root.app import core, serving
from hearth.root.cluster import measuring
from hearth.root.settings import ClusterSettings, Serving
from hearth.worker import server as worker_server
from hearth.worker.server import WorkerServer

GPU = "vulkan:0"
pytestmark = pytest.mark.skipif(
    not _native.list_devices(), reason="no Vulkan driver, or the core was built without Vulkan"
)

# Devices of the root and its workers, and the layout.
LAYOUTS: list[tuple[list[str], dict[str, Any]]] = [
    ([GPU], {}),
    ([GPU, GPU], {}),
    ([GPU, "cpu"], {"lane": "grpc"}),
    (["cpu", GPU], {"shares": (2, 1)}),
    ([GPU, GPU], {"parallel": "pipeline", "lane": "grpc"}),
    (["cpu", GPU], {"parallel": "pipeline"}),
    ([GPU, "cpu", GPU], {"parallel": "1x2+1x1"}),
]


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, list[str]]]:
    """Addresses of two workers in this process of each device."""
    servers: dict[str, list[WorkerServer]] = {
        device: [WorkerServer("127.0.0.1:0", threads=1, device=device) for _ in range(2)]
        for device in ("cpu", GPU)
    }
    yield {
        device: [f"127.0.0.1:{server.start()}" for server in each]
        for device, each in servers.items()
    }
    for server in (server for each in servers.values() for server in each):
        server.stop()


def addresses_of(chosen: list[str], workers: dict[str, list[str]]) -> list[str]:
    """A worker for each device after the root's."""
    left = {device: list(each) for device, each in workers.items()}
    return [left[device].pop() for device in chosen[1:]]


@pytest.mark.parametrize("chosen,layout", LAYOUTS, ids=lambda value: str(value))
def test_the_demo_writes_its_text(
    chosen: list[str], layout: dict[str, Any], workers: dict[str, list[str]]
) -> None:
    with perplexity.formed(
        "demo", addresses_of(chosen, workers), "f32", context=256, device=chosen[0], **layout
    ) as (cluster, limits):
        story = known_answers.read_stories()[0]
        prompt, greedy = story["prompt_ids"], story["greedy_ids"][:48]
        ids, pages = [*prompt, *greedy], range(limits.max_pages)
        # What is likeliest after each token, the last eight one at a time.
        whole = len(ids) - 8
        parts = [(0, ids[:whole]), *((at, ids[at : at + 1]) for at in range(whole, len(ids)))]
        rows = [
            cluster.submit(perplexity.step(limits, [(pages, at, part)])).result().logits
            for at, part in parts
        ]
        likeliest = np.concatenate(rows).argmax(axis=1).tolist()
        assert likeliest[len(prompt) - 1 : -1] == greedy


# Of models with other operations than Llama's: the root's devices and its workers'. Ranks on a CPU
# and on a GPU must choose the same experts.
FAMILIES = [
    "mixtral",
    "qwen3moe",
    "gpt-oss",
    "olmo2",
    "deepseek2, sigmoid, groups, yarn",
    "qwen3next",
    "gemma4, experts",
    "gemma4, inputs of layers",
]


@pytest.mark.parametrize("chosen", [[GPU], ["cpu", GPU]], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_llama_cpp(
    name: str, chosen: list[str], tmp_path: Path, workers: dict[str, list[str]]
) -> None:
    case, path = gguf_families.CASES[name], tmp_path / "model.gguf"
    ids = gguf_families.write(case, path)
    with np.load(gguf_families.KNOWN) as file:
        expected = file[name]
    with perplexity.formed(
        str(path), addresses_of(chosen, workers), "f32", context=32, page_size=8, device=chosen[0]
    ) as formed:
        found = perplexity.logits_of(*formed, ids)[:, :: gguf_families.EVERY]
    difference = float(np.abs(found - expected).max() / expected.std())
    print(f"{name}, {chosen}: {difference:.1e}")
    assert difference < case.tolerance


# Each with another operation of the program.
CASES = {
    "llama, biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3, head norms": Case("qwen3", {}),
    "gemma2, norms of outputs, softcaps, windows": Case(
        "gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 16}
    ),
    "gpt2, learned positions, layer norms": Case(
        "gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 8, "n_positions": 64}
    ),
    "mixtral, experts": Case("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3_moe, many experts": Case(
        "qwen3_moe",
        {
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
        },
    ),
    "gpt_oss, sinks, experts with biases": Case(
        "gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7}
    ),
    "olmo2, norms of whole rows": Case("olmo2", {"head_dim": 8}),
    "deepseek_v2, latent attention": Case(
        "deepseek_v2",
        {
            "q_lora_rank": 24,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "num_key_value_heads": 8,
            "head_dim": 8,
            "moe_intermediate_size": 40,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
        },
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_families_against_transformers(
    name: str, tmp_path: Path, workers: dict[str, list[str]]
) -> None:
    reference = family_parity.make_reference(CASES[name], tmp_path, seed=3)
    for chosen in ([GPU], [GPU, GPU], ["cpu", GPU]):
        found = family_parity.hearth_logits(
            reference.path,
            reference.texts,
            addresses_of(chosen, workers),
            "mesh",
            device=chosen[0],
        )
        for rows, wanted in zip(found, reference.logits, strict=True):
            difference = float(np.abs(rows - wanted).max())
            print(f"{name}, {chosen}: {difference:.1e}")
            assert difference < family_parity.LARGEST_DIFFERENCE


@pytest.mark.parametrize("chosen", [[GPU], ["cpu", GPU]], ids=str)
def test_a_recurrent_model_has_no_drafts_on_a_gpu(
    chosen: list[str], tmp_path: Path, workers: dict[str, list[str]]
) -> None:
    path = family_models.write_model(tmp_path / "model", "qwen3.5-moe")
    addresses = addresses_of(chosen, workers)
    with perplexity.formed(str(path), addresses, speculate="lookup", device=chosen[0]) as (
        _,
        limits,
    ):
        assert (limits.stateful, limits.most_drafts) == (True, 0)


@pytest.mark.parametrize("weights", ["q4_0", "q4_k"])
def test_perplexity_is_the_cpus(weights: str) -> None:
    """Within 0.1 %: int8 activations round alike on both, but for what sums differ in."""
    texts = [story["greedy_ids"][:64] for story in known_answers.read_stories()]
    of = {}
    for device in ("cpu", GPU):
        with perplexity.formed("demo", (), weights, device=device) as (cluster, limits):
            of[device] = perplexity.perplexity(cluster, limits, texts)
    assert of[GPU] == pytest.approx(of["cpu"], rel=1e-3)


def test_a_gpu_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probe, "_DRAWN", (256, 2, 128, 512, 1))
    monkeypatch.setattr(probe, "_MANY", 16)
    monkeypatch.setattr(probe, "_SMALL_LAYERS", 2)
    monkeypatch.setattr(probe, "_WARM_SECONDS", 0.0)
    found = probe.measure(1, None, (), GPU)
    assert found.sane
    assert found.read_bandwidth > 0
    with pytest.raises(HearthError, match="--device vulkan:99 is not there"):
        probe.measure(1, None, (), "vulkan:99")


@pytest.mark.parametrize("chosen", [[GPU], [GPU, "cpu"], ["cpu", GPU]], ids=str)
def test_a_cluster_with_a_gpu_states_what_it_expects(
    chosen: list[str], workers: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def known(*_: object, device: str = "cpu", may_measure: bool = True, **__: object) -> Speeds:
        asked.append(device)
        return Speeds(5e9 if device == "cpu" else 2e10, 1e11, 6e10, 1e-5, 1e9)

    monkeypatch.setattr(worker_server, "speeds_here", known)
    monkeypatch.setattr(measuring, "speeds_here", known)
    with perplexity.formed(
        "demo",
        addresses_of(chosen, workers),
        "f32",
        context=256,
        predict=True,
        device=chosen[0],
    ) as (cluster, _):
        assert cluster.status().prediction.decode_tokens_per_second > 0
    assert set(chosen) <= set(asked)


def test_a_worker_says_its_device() -> None:
    metrics = WorkerMetrics()
    server = WorkerServer("127.0.0.1:0", device=GPU, metrics=metrics)
    info, device = server.describe(), _native.list_devices()[0]
    assert info.instruction_set == f"vulkan:0 ({device.name})"
    assert info.memory_total_bytes == devices.memory_total(GPU) >= info.memory_available_bytes > 0
    text = metrics.text().decode()
    assert f'hearth_gpu_memory_bytes{{gpu="{info.instruction_set}",kind="{device.kind}"}}' in text


def test_bench_names_what_computes() -> None:
    sizes = ("--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "1", "--threads", "1")
    ran = hearth("bench", "demo", *sizes, "--device", GPU, "--no-predict", "--json")
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["kernels"] == [devices.kernels(GPU)]
    assert result["decode_tokens_per_second"] > 0
    # That of the CPU's memory would mean nothing.
    assert result["memory_gb_per_second"] is result["memory_share"] is None


def test_devices_that_are_not_there_are_named() -> None:
    with pytest.raises(HearthError, match=r"--device vulkan:99 is not there: there are vulkan:0"):
        devices.check_devices(["cpu", "vulkan:99"])
    with pytest.raises(HearthError, match="'cuda' is not a device") as caught:
        devices.check_devices(["cuda"])
    assert caught.value.reason == Reason.BAD_SETTING


def test_a_lost_gpu_costs_no_token(
    start_worker: Callable[..., WorkerProcess], start_root: Callable[..., ServiceProcess]
) -> None:
    """Killed in mid-answer: the CPUs go on, with the text that one CPU alone writes."""
    gpu = start_worker("--name", "gpu", "--device", "vulkan")
    cpu = start_worker("--name", "cpu")
    options = ("--model", "demo", "--kv-type", "f32", "--wait-seconds", "1")
    root = start_root(*options, "--workers", gpu.address, cpu.address)
    story = known_answers.read_stories()[0]
    with Client(root.address, timeout=60) as client:
        stream = client.generate(story["prompt"], max_tokens=len(story["greedy_ids"]))
        for number, _ in enumerate(stream):
            if number == 5:
                gpu.kill()
        assert stream.token_ids == story["greedy_ids"]


def test_a_device_that_fails_in_a_step_makes_its_node_unfit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: object) -> None:
        raise _native.DeviceError("Vulkan: a step: the device is lost")

    with perplexity.formed("demo", (), "f32", context=64, device=GPU) as (cluster, limits):
        monkeypatch.setattr(_native.Shard, "step", lost)
        with pytest.raises(HearthError, match=r"--device vulkan:0: .*the device is lost") as caught:
            cluster.submit(perplexity.step(limits, [((0,), 0, (1, 2))])).result()
        assert caught.value.reason == Reason.WORKER_UNFIT


def test_a_root_alone_that_lost_its_gpu_loads_again_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lost in mid-answer, as the driver says it: the answer has the text of one CPU."""
    made, steps = _native.Shard.step, itertools.count()

    def step(shard: _native.Shard, *given: Any) -> Any:
        if next(steps) == 8:
            raise _native.DeviceError("Vulkan: a step: the device is lost")
        return made(shard, *given)

    monkeypatch.setattr(_native.Shard, "step", step)
    settings = ClusterSettings(threads=1, kv_type="f32", device=GPU)
    story = known_answers.read_stories()[0]
    wanted = story["greedy_ids"][:32]
    with (
        open_model("demo") as model,
        core(model, settings, form=False, pause_seconds=30) as running,
        serving(running, Serving(listen="127.0.0.1:0")) as port,
        Client(f"127.0.0.1:{port}", timeout=60) as client,
    ):
        stream = client.generate(story["prompt"], max_tokens=len(wanted))
        assert len(list(stream)) > 0
        assert stream.token_ids == wanted
        assert next(steps) > 8
        assert running.cluster.status().epoch == 2
