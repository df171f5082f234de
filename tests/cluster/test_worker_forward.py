"""Steps on a real worker: the same numbers as in this process, and every way a stream ends."""

from __future__ import annotations

import queue
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from harness import Plan, WorkerProcess, free_port, shard_config

from hearth.common import wire
from hearth.common.allowed import LOWEST
from hearth.common.candidates import OF_NUCLEUS, Candidates, Draw, find
from hearth.common.channels import PROTOCOL_VERSION, dial
from hearth.common.errors import HearthError, Reason
from hearth.common.rpc_errors import from_rpc_error
from hearth.root.cluster.streaming import stream_weights
from hearth.v1 import common_pb2, worker_pb2, worker_pb2_grpc

Start = Callable[..., WorkerProcess]
F32 = common_pb2.SYNC_TYPE_F32


class Root:
    """The other end of a Forward stream, one message at a time."""

    def __init__(self, worker: WorkerProcess, plan: Plan) -> None:
        self.plan = plan
        self.channel = dial(worker.address)
        self.stub = worker_pb2_grpc.WorkerServiceStub(self.channel)
        stream_weights(self.channel, plan.begin, plan.read, worker=worker.address)
        self._out: queue.SimpleQueue[worker_pb2.ForwardRequest | None] = queue.SimpleQueue()
        self.call = self.stub.Forward(iter(self._out.get, None), timeout=60)
        self.send(open=worker_pb2.ForwardOpen(lease=plan.begin.lease))
        assert self.receive().HasField("ready")
        self.step_id = 0
        # Sequence -> pages of its table.
        self._held: dict[int, int] = {}

    def send(self, **message: object) -> None:
        self._out.put(worker_pb2.ForwardRequest(**message))  # type: ignore[arg-type]

    def receive(self) -> worker_pb2.ForwardResponse:
        return next(self.call)

    def begin_step(
        self, x: wire.F32, sequences: list[tuple[int, int, list[int]]], output_rows: list[int]
    ) -> None:
        self.step_id += 1
        step = worker_pb2.Step(
            step_id=self.step_id,
            activations=wire.encode(x, F32),
            activation_type=F32,
            output_rows=output_rows,
        )
        for rows, position, pages in sequences:
            # A sequence is known by its first page here.
            seq_id = pages[0] if pages else 0
            kept = self._held.get(seq_id, 0) if position else 0
            self._held[seq_id] = len(pages)
            step.sequences.add(
                rows=rows,
                position=position,
                sequence_id=seq_id,
                kept_pages=kept,
                new_pages=pages[kept:],
            )
        self.send(step=step)

    def finish_step(self) -> worker_pb2.StepResult:
        """Answers every sync with what came, as if this rank were the only one."""
        while True:
            response = self.receive()
            if response.HasField("result"):
                return response.result
            self.send(sync=response.sync)

    def refused(self) -> HearthError:
        with pytest.raises(grpc.RpcError) as error:
            while True:
                self.receive()
        return from_rpc_error(error.value)

    def close(self) -> None:
        self._out.put(None)
        self.call.cancel()
        self.channel.close()


@pytest.fixture
def root(start_worker: Start) -> Iterator[Root]:
    root = Root(start_worker(), Plan())
    yield root
    root.close()


def rows(count: int, hidden: int = 128) -> wire.F32:
    return np.random.default_rng(count).standard_normal((count, hidden), dtype=np.float32)


def test_the_same_numbers_as_in_this_process(root: Root) -> None:
    shard = root.plan.local_shard()
    steps = [
        (rows(20), [(20, 0, [0, 1])], [19]),
        (rows(9), [(1, 20, [0, 1]), (8, 0, [2])], [0, 8]),
        (rows(2), [(1, 21, [0, 1]), (1, 8, [2])], [0, 1]),
    ]
    for x, sequences, output_rows in steps:
        root.begin_step(x, sequences, output_rows)
        result = root.finish_step()
        expected = shard.step(x, sequences, output_rows, None).logits
        got = wire.decode(result.logits, F32, *expected.shape)
        assert np.array_equal(got, expected)
        assert result.step_id == root.step_id
        assert 0 < result.timing.compute_ns <= result.timing.wall_ns


def test_a_step_is_decode_when_all_its_rows_return_logits(start_worker: Start) -> None:
    address = f"127.0.0.1:{free_port()}"
    root = Root(start_worker("--metrics", address), Plan())
    decode = 'hearth_step_seconds_count{phase="decode"} 1.0'
    prefill = 'hearth_step_seconds_count{phase="prefill"} 1.0'
    for x, sequences, output_rows in (
        (rows(1), [(1, 0, [0])], []),  # a prompt's chunk of one row
        (rows(4), [(3, 1, [0]), (1, 0, [1])], [0, 1, 2, 3]),  # two draft tokens
    ):
        root.begin_step(x, sequences, output_rows)
        root.finish_step()
    # A step is counted after its result is sent.
    limit = time.monotonic() + 30
    while not {decode, prefill} <= set(scrape(address).splitlines()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    root.close()


def test_memory_of_released_pages_is_given_back_and_the_rest_stays(start_worker: Start) -> None:
    address = f"127.0.0.1:{free_port()}"
    root = Root(start_worker("--metrics", address), Plan())
    shard = root.plan.local_shard()

    def same(x: wire.F32, sequences: list[tuple[int, int, list[int]]], output: list[int]) -> None:
        root.begin_step(x, sequences, output)
        expected = shard.step(x, sequences, output, None).logits
        got = wire.decode(root.finish_step().logits, F32, *expected.shape)
        assert np.array_equal(got, expected)

    def used(pages: int) -> None:
        limit = time.monotonic() + 30
        while f'hearth_kv_pages{{state="used"}} {pages:.1f}' not in scrape(address).splitlines():
            assert time.monotonic() < limit
            time.sleep(0.05)

    same(rows(9), [(1, 0, [0]), (8, 0, [3])], [0, 8])
    used(2)
    root.send(page_release=worker_pb2.PageRelease(first_page=1))
    used(1)
    assert shard.kv_pages == 2
    shard.release_pages(1)
    assert shard.kv_pages == 1
    assert shard.kv_bytes > 0
    # The first sequence goes on, and another has a page whose memory is new.
    same(rows(3), [(1, 1, [0]), (2, 0, [3])], [0, 2])
    used(2)
    root.close()


def scrape(address: str) -> str:
    """The metrics of a worker."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_candidates_are_the_best_with_their_ids(root: Root) -> None:
    x = rows(3)
    root.begin_step(x, [(3, 0, [0])], [0, 2])
    whole = wire.decode(root.finish_step().logits, F32, 2, 256)
    root.step_id += 1
    step = worker_pb2.Step(
        step_id=root.step_id,
        activations=wire.encode(x, F32),
        activation_type=F32,
        output_rows=[0, 2],
        candidates=worker_pb2.Candidates(count=5),
    )
    step.sequences.add(rows=3, position=0, sequence_id=0, new_pages=[0])
    root.send(step=step)
    result = root.finish_step()
    ids = np.frombuffer(result.candidate_ids, "<u4").reshape(2, 5)
    assert np.array_equal(np.take_along_axis(whole, ids, 1), wire.decode(result.logits, F32, 2, 5))
    assert {*ids[0]} == {*np.argsort(whole[0])[-5:]}


def test_candidates_are_among_the_allowed_tokens(root: Root) -> None:
    x = rows(3)
    root.begin_step(x, [(3, 0, [0])], [0, 2])
    whole = wire.decode(root.finish_step().logits, F32, 2, 256)
    mask = np.zeros(256, np.bool_)
    mask[[3, 70, 200]] = True
    bits = np.packbits(mask, bitorder="little").tobytes()
    root.step_id += 1
    step = worker_pb2.Step(
        step_id=root.step_id,
        activations=wire.encode(x, F32),
        activation_type=F32,
        output_rows=[0, 2],
        candidates=worker_pb2.Candidates(
            count=5, allowed=[worker_pb2.AllowedTokens(row=1, bits=bits)]
        ),
    )
    step.sequences.add(rows=3, position=0, sequence_id=0, new_pages=[0])
    root.send(step=step)
    result = root.finish_step()
    ids = np.frombuffer(result.candidate_ids, "<u4").reshape(2, 5)
    logits = wire.decode(result.logits, F32, 2, 5)
    assert {*ids[0]} == {*np.argsort(whole[0])[-5:]}
    assert {*ids[1][:3]} == {3, 70, 200}
    assert np.array_equal(logits[1][:3], whole[1][ids[1][:3]])
    assert (logits[1][3:] == LOWEST).all()


def sampled_step(root: Root, x: wire.F32, candidates: worker_pb2.Candidates) -> None:
    """Sends a step of one sequence whose last row is sampled."""
    root.step_id += 1
    step = worker_pb2.Step(
        step_id=root.step_id,
        activations=wire.encode(x, F32),
        activation_type=F32,
        output_rows=[len(x) - 1],
        candidates=candidates,
    )
    step.sequences.add(rows=len(x), position=0, sequence_id=0, new_pages=[0])
    root.send(step=step)


@pytest.mark.parametrize("count", [1, OF_NUCLEUS], ids=["temperature", "nucleus"])
def test_candidates_of_a_draw(root: Root, count: int) -> None:
    """The worker finds what its whole row gives, by the same draw."""
    x, nucleus = rows(3), count > 1
    sampled_step(root, x, worker_pb2.Candidates())
    whole = wire.decode(root.finish_step().logits, F32, 1, 256)
    draw = worker_pb2.Draw(row=0, temperature=0.5, seed=1 << 63, number=4, nucleus=nucleus)
    sampled_step(root, x, worker_pb2.Candidates(count=count, draws=[draw]))
    result = root.finish_step()
    wanted = Candidates(count, draws={0: Draw(0.5, 1 << 63, 4, nucleus)})
    expected = find(whole, wanted, 0)
    assert expected.ids is not None
    assert result.candidate_ids == expected.ids.tobytes()
    assert result.logits == expected.logits.tobytes()
    assert result.logit_counts == b"".join(each.tobytes() for each in expected.counts.values())
    assert len(result.logit_counts) == (693 * 4 if nucleus else 0)


@pytest.mark.parametrize(
    ("draw", "problem"),
    [
        ({"row": 1}, "1 draws, of 1 output rows"),
        ({"temperature": 0.0}, "a temperature of 0"),
        ({"temperature": float("nan")}, "a temperature of nan"),
        ({"temperature": 101.0}, "a temperature of 101"),
        ({"nucleus": True}, "7 candidates of a nucleus, which needs 320"),
    ],
    ids=str,
)
def test_a_draw_that_cannot_be(root: Root, draw: dict[str, Any], problem: str) -> None:
    item = worker_pb2.Draw(**{"temperature": 1.0, **draw})
    sampled_step(root, rows(1), worker_pb2.Candidates(count=7, draws=[item]))
    error = root.refused()
    assert error.reason == Reason.BAD_STEP
    assert problem in error.message


@pytest.mark.parametrize(
    ("allowed", "problem"),
    [
        ([(0, 31)], "31 bytes of allowed tokens, expected 32"),
        ([(2, 32)], "1 rows of allowed tokens, of 1 output rows"),
        ([(0, 32), (0, 32)], "2 rows of allowed tokens"),
    ],
)
def test_allowed_tokens_of_a_wrong_shape(
    root: Root, allowed: list[tuple[int, int]], problem: str
) -> None:
    x = rows(1)
    root.step_id += 1
    masks = [worker_pb2.AllowedTokens(row=row, bits=bytes(size)) for row, size in allowed]
    step = worker_pb2.Step(
        step_id=root.step_id,
        activations=wire.encode(x, F32),
        activation_type=F32,
        output_rows=[0],
        candidates=worker_pb2.Candidates(count=2, allowed=masks),
    )
    step.sequences.add(rows=1, position=0, sequence_id=0, new_pages=[0])
    root.send(step=step)
    error = root.refused()
    assert error.reason == Reason.BAD_STEP
    assert problem in error.message


def stage_of_two(stage: int, rank: int = 0, ranks: int = 1) -> Plan:
    """One of two stages of a layer each; only the second has a head."""
    config = shard_config(layers=2)
    config.layers.begin, config.layers.end = stage, stage + 1
    del config.kind_of_layer[1:]
    if stage == 0:
        config.vocab.Clear()
    plan = Plan(config, ranks=ranks)
    plan.begin.placement.CopyFrom(
        common_pb2.Placement(stage=stage, stages=2, rank=rank, ranks=ranks)
    )
    return plan


def test_a_stage_returns_activations_and_the_last_one_logits(start_worker: Start) -> None:
    plans = [stage_of_two(0), stage_of_two(1)]
    roots = [Root(start_worker(), plan) for plan in plans]
    shards = [plan.local_shard() for plan in plans]
    for x, sequences, output_rows in (
        (rows(20), [(20, 0, [0, 1])], [19]),
        (rows(2), [(1, 20, [0, 1]), (1, 0, [2])], [0, 1]),
    ):
        roots[0].begin_step(x, sequences, [])
        result = roots[0].finish_step()
        assert not result.logits
        between = wire.decode(result.activations, F32, *x.shape)
        assert np.array_equal(between, shards[0].step(x, sequences, [], None).activations)
        roots[1].begin_step(between, sequences, output_rows)
        result = roots[1].finish_step()
        assert not result.activations
        expected = shards[1].step(between, sequences, output_rows, None).logits
        assert np.array_equal(wire.decode(result.logits, F32, *expected.shape), expected)
    for root in roots:
        root.close()


def test_only_the_first_rank_of_a_stage_returns_activations(start_worker: Start) -> None:
    root = Root(start_worker(), stage_of_two(0, rank=1, ranks=2))
    root.begin_step(rows(3), [(3, 0, [0])], [])
    result = root.finish_step()
    assert not result.activations
    assert not result.logits
    root.close()


@pytest.mark.parametrize(
    "sync",
    [
        worker_pb2.SyncFrame(step_id=1, index=1, data=bytes(512)),
        worker_pb2.SyncFrame(step_id=2, index=0, data=bytes(512)),
        worker_pb2.SyncFrame(step_id=1, index=0, data=bytes(511)),
    ],
)
def test_a_sync_that_is_not_the_awaited_ends_the_stream(
    root: Root, sync: worker_pb2.SyncFrame
) -> None:
    root.begin_step(rows(1), [(1, 0, [0])], [0])
    root.receive()
    root.send(sync=sync)
    assert root.refused().reason == Reason.BAD_STEP


@pytest.mark.parametrize(
    ("count", "sequences", "output_rows"),
    [
        (1, [(2, 0, [0])], [0]),  # more rows than activations
        (1, [(1, 0, [99])], [0]),  # a page that the plan does not have
        (1, [(1, 1 << 30, [0])], [0]),  # a position without a page
        (1, [(1, 0, [])], [0]),
        (1, [(1, 0, [0])], [7]),  # a row that is not there
        (33, [(33, 0, [0, 1, 2])], [0]),  # more than max_step_tokens
        (0, [], []),
    ],
)
def test_a_step_that_cannot_be_computed_is_refused(
    root: Root, count: int, sequences: list[tuple[int, int, list[int]]], output_rows: list[int]
) -> None:
    root.begin_step(rows(count), sequences, output_rows)
    assert root.refused().reason == Reason.BAD_STEP


def test_page_tables_as_changes_give_the_same_numbers(root: Root) -> None:
    """Two sequences of which only what changed is sent: pages added, pages replaced, one ended."""
    shard = root.plan.local_shard()
    steps: list[tuple[list[tuple[int, int, int, int, list[int]]], list[int]]] = [
        # (sequence, rows, position, kept pages, new pages); ended
        ([(5, 20, 0, 0, [3, 1]), (6, 9, 0, 0, [2])], []),
        ([(5, 1, 20, 2, []), (6, 8, 9, 1, [0])], []),
        ([(5, 14, 21, 2, [5])], [6]),
        ([(5, 4, 30, 2, [4]), (6, 3, 0, 0, [2])], []),
    ]
    tables: dict[int, list[int]] = {}
    for spans, ended in steps:
        x = rows(sum(span[1] for span in spans))
        root.step_id += 1
        step = worker_pb2.Step(
            step_id=root.step_id,
            activations=wire.encode(x, F32),
            activation_type=F32,
            output_rows=[0],
            ended=ended,
        )
        whole = []
        for seq_id, count, position, kept, new in spans:
            step.sequences.add(
                rows=count, position=position, sequence_id=seq_id, kept_pages=kept, new_pages=new
            )
            tables[seq_id] = tables.get(seq_id, [])[:kept] + new
            whole.append((count, position, tables[seq_id]))
        root.send(step=step)
        expected = shard.step(x, whole, [0], None).logits
        got = wire.decode(root.finish_step().logits, F32, *expected.shape)
        assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept_pages": 2}, "sequence 1 keeps 2 pages of a table of 1"),
        ({"new_pages": [1 << 20]}, "sequence 1 has page 1048576 of a KV cache of"),
        ({"sequence_id": 2}, "a step of 2 sequences has 1 sequence ids"),
        ({"ended": 3}, "sequence 3 ended but has no page table; 1 have one"),
    ],
)
def test_page_tables_that_cannot_be_are_refused(
    root: Root, change: dict[str, Any], message: str
) -> None:
    root.begin_step(rows(1), [(1, 0, [1])], [0])
    root.finish_step()
    step = worker_pb2.Step(step_id=2, activations=wire.encode(rows(2), F32), activation_type=F32)
    if "ended" in change:
        step.ended.append(change.pop("ended"))
    change = {"sequence_id": 1, "kept_pages": 1, **change}
    step.sequences.add(rows=1, position=1, **change)
    step.sequences.add(rows=1, position=0, sequence_id=2, new_pages=[2])
    root.send(step=step)
    error = root.refused()
    assert error.reason == Reason.BAD_STEP
    assert message in error.message


def test_a_step_out_of_order_is_refused(root: Root) -> None:
    root.step_id = 5
    root.begin_step(rows(1), [(1, 0, [0])], [0])
    assert "received step 6, expected 1" in root.refused().message


def test_a_higher_epoch_ends_the_stream_even_in_mid_step(start_worker: Start) -> None:
    worker = start_worker()
    old = Root(worker, Plan())
    old.begin_step(rows(1), [(1, 0, [0])], [0])
    old.receive()  # the worker now waits for a sync that never comes
    new = Root(worker, Plan(epoch=2))
    assert old.refused().reason == Reason.STALE_EPOCH
    new.begin_step(rows(1), [(1, 0, [0])], [0])
    assert new.finish_step().step_id == 1
    old.close()
    new.close()


def test_a_second_forward_stream_is_refused(root: Root) -> None:
    call = root.stub.Forward(
        iter([worker_pb2.ForwardRequest(open=worker_pb2.ForwardOpen(lease=root.plan.begin.lease))]),
        timeout=10,
    )
    with pytest.raises(grpc.RpcError) as error:
        next(call)
    assert from_rpc_error(error.value).reason == Reason.STREAM_IN_USE


def test_a_closed_stream_frees_the_worker_after_the_grace_period(start_worker: Start) -> None:
    worker = start_worker("--lease-grace", "0.2")
    root = Root(worker, Plan())
    root.begin_step(rows(1), [(1, 0, [0])], [0])
    root.receive()
    root.close()  # in mid-step, as a root that dies does
    deadline = 20
    with dial(worker.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        for _ in range(deadline * 10):
            request = worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
            answer = stub.Describe(request, timeout=5)
            if not answer.held_by:
                break
            time.sleep(0.1)
        assert answer.held_by == ""
    other = Root(worker, Plan(shard_config(), root_id="barn"))
    other.close()


def test_a_worker_that_stops_says_so(start_worker: Start) -> None:
    worker = start_worker()
    root = Root(worker, Plan())
    assert worker.end() == 0
    assert root.refused().reason == Reason.SHUTTING_DOWN
    root.close()


def test_forward_without_a_plan_is_refused(start_worker: Start) -> None:
    worker = start_worker()
    with dial(worker.address) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        lease = worker_pb2.Lease(root_id="a", root_name="attic", epoch=1)
        opening = worker_pb2.ForwardRequest(open=worker_pb2.ForwardOpen(lease=lease))
        with pytest.raises(grpc.RpcError) as error:
            next(stub.Forward(iter([opening]), timeout=10))
    assert from_rpc_error(error.value).reason == Reason.NOT_LOADED


def page(number: int, page: int = 0) -> worker_pb2.StoredPage:
    return worker_pb2.StoredPage(name=bytes([number]) * 32, page=page)


def fetched(root: Root, *items: worker_pb2.StoredPage) -> list[int]:
    """The states of pages, once none is pending."""
    states = {item.name: 0 for item in items}
    waited: list[worker_pb2.StoredPage] = list(items)
    while waited:
        fetch = worker_pb2.PageFetch(items=waited, wait_ms=1000)
        root.send(page_fetch=fetch)
        for item, state in zip(waited, root.receive().pages_fetched.states, strict=True):
            states[item.name] = state
        waited = [item for item in waited if states[item.name] == worker_pb2.PAGE_STATE_PENDING]
    return [states[item.name] for item in items]


def test_pages_are_stored_and_fetched_between_steps(start_worker: Start, tmp_path: Any) -> None:
    """A second worker process goes on after the pages that the first one stored."""
    ready, missing = worker_pb2.PAGE_STATE_READY, worker_pb2.PAGE_STATE_MISSING
    plan, x = Plan(), rows(30)
    size = plan.begin.shard.page_size
    results = []
    for run in range(2):
        worker = start_worker("--kv-cache", "disk", "--cache-dir", str(tmp_path / "cache"))
        root = Root(worker, plan)
        described = root.stub.Describe(
            worker_pb2.DescribeRequest(protocol_version=PROTOCOL_VERSION)
        )
        assert described.stores_pages
        if run == 0:
            assert fetched(root, page(1), page(2, 1)) == [missing, missing]
            root.begin_step(x[:size], [(size, 0, [0])], [])
            root.finish_step()
            root.send(page_store=worker_pb2.PageStore(items=[page(1)]))
            # It can be fetched as soon as it was stored, to another page.
            assert fetched(root, page(1, 1)) == [ready]
        else:
            assert fetched(root, page(1), page(2, 1)) == [ready, missing]
        root.begin_step(x[size:], [(30 - size, size, [0, 2])], [29 - size])
        results.append(root.finish_step().logits)
        root.close()
        assert worker.end() == 0
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"page_store": worker_pb2.PageStore(items=[page(1, 9)])}, "page 9 has no content"),
        ({"page_store": worker_pb2.PageStore(items=[page(1)] * 65)}, "65 pages to move at once"),
        ({"page_fetch": worker_pb2.PageFetch(items=[page(1)] * 65)}, "65 pages to move at once"),
        (
            {"page_fetch": worker_pb2.PageFetch(items=[worker_pb2.StoredPage(name=b"short")])},
            "a page's name has 5 bytes, not 32",
        ),
    ],
)
def test_pages_that_cannot_be_are_refused(
    message: dict[str, Any], problem: str, start_worker: Start, tmp_path: Any
) -> None:
    root = Root(start_worker("--kv-cache", "disk", "--cache-dir", str(tmp_path / "c")), Plan())
    root.send(**message)
    error = root.refused()
    assert error.reason == Reason.BAD_STEP
    assert problem in error.message
    root.close()


def test_a_worker_without_a_disk_has_no_pages(root: Root) -> None:
    root.begin_step(rows(4), [(4, 0, [0])], [])
    root.finish_step()
    root.send(page_store=worker_pb2.PageStore(items=[page(1)]))
    assert fetched(root, page(1, 1)) == [worker_pb2.PAGE_STATE_MISSING]
