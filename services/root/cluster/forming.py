"""One attempt to form a cluster: dial the workers, size the KV cache, load shards, open a lane."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from hearth.common import devices, system
from hearth.common.errors import HearthError, Reason
from hearth.common.link_costs import LinkCosts
from hearth.common.metrics import RootMetrics
from hearth.common.types import SYNC
from hearth.converter import ModelError
from hearth.root.cluster import blame, wire
from hearth.root.cluster.archive import Archive, PlanPages, identity_of, stores_pages
from hearth.root.cluster.formation import Formation, close_all
from hearth.root.cluster.lanes import HubLane, Lanes, choose_cipher, open_mesh
from hearth.root.cluster.limits import limits_for
from hearth.root.cluster.links import WorkerLink
from hearth.root.cluster.loading import Loading
from hearth.root.cluster.measuring import Root, measure
from hearth.root.cluster.reports import Reports, refine
from hearth.root.cluster.streaming import LoadEvent
from hearth.root.planning.blueprint import Blueprint, LeftOut
from hearth.root.planning.facts import NodeFacts
from hearth.root.planning.machines import Link
from hearth.root.planning.plan import Plan
from hearth.root.planning.predict import Prediction
from hearth.root.planning.streaming import disk_bytes
from hearth.root.scheduling.batch import Limits
from hearth.root.status import describe
from hearth.root.status.board import Board
from hearth.v1 import common_pb2, root_pb2, worker_pb2
from hearth.worker.page_mover import node_context
from hearth.worker.shard import NodeShard, check_free

log = logging.getLogger(__name__)

# Errors that follow from another failure, so never the cause.
_CONSEQUENCES = {Reason.CANCELLED, Reason.WORKER_LOST, Reason.UNREACHABLE}

# A worker keeps its shard between two plans for so long, in seconds: time for a lost worker to come
# back, and for the cluster to be formed.
KEEP_SECONDS = 120

# Called with the loading progress of one node: (address or "local", event).
LoadListener = Callable[[str, LoadEvent], None]


class Forming:
    """Call `run` once; `interrupt` and `stream_ended` may be called by any thread meanwhile."""

    def __init__(
        self,
        blueprint: Blueprint,
        workers: Sequence[str],
        lease: worker_pb2.Lease,
        shard: NodeShard | None,
        board: Board,
        metrics: RootMetrics,
        on_load: LoadListener,
        on_end: Callable[[WorkerLink, HearthError], None],
        archive: Archive | None = None,
    ) -> None:
        """workers: addresses in rank order. shard: the root's own, if it is already loaded.

        on_end: called when a Forward stream has ended. archive: of KV pages on disk. Raises
        HearthError if the model cannot be divided this way.
        """
        self.shard = shard
        self._blueprint = blueprint
        self._plan = blueprint.plan(workers)
        self._lease = lease
        self._board = board
        self._metrics = metrics
        self._on_load = on_load
        self._on_end = on_end
        self._archive = archive
        self._links = [
            WorkerLink(address, blueprint.settings.security, node.place)
            for address, node in zip(workers, self._plan.nodes[1:], strict=True)
        ]
        # Sentences on workers that are not used because they would slow requests.
        self._left_out: list[str] = []
        self._loading: Loading | None = None
        # The ranks' reports about the mesh; replaced once `describe` returns the workers' names.
        self._reports = Reports(())
        # Of the links of the root's stage, by the mesh.
        self._costs: LinkCosts | None = None
        # The expected speed, where nodes are measured.
        self.prediction: Prediction | None = None
        # See LoadDone.pages_epoch, of the workers; and whether the root's own shard went on.
        self.pages_epochs: tuple[int, ...] = ()
        self.own_kept = False
        self._interrupted = threading.Event()
        # The first error, if another thread noticed it.
        self._broken: HearthError | None = None

    def run(self) -> tuple[Formation, Limits]:
        """The formed cluster and the scheduler's limits. Raises HearthError."""
        settings = self._blueprint.settings
        try:
            self.check()
            self._blueprint.model.check_unchanged(self._interrupted.is_set)
            self.check()
            infos = self._describe()
            infos = self._measure(infos)
            self.check()
            limits = self._limits(infos)
            self._reports = Reports(
                [
                    blame.Worker(number, link.address, link.name)
                    for number, link in enumerate(self._links, 1)
                ]
            )
            self.check()
            shard = self._load(limits)
            self.check()
            identity = self._identity(limits)
            self.check()
            lanes = self._open_lanes()
            self._predict()
            self.check()
        except BaseException as error:
            reason = self._reason(error)
            links, self._links = self._links, []
            close_all(links, self._lease, keep_seconds=KEEP_SECONDS)
            raise reason from None
        formation = Formation(
            self._plan, shard, self._links, lanes, settings.sync_type, self._reports
        )
        formation.pages = self._pages(formation, shard, identity)
        return formation, limits

    def check(self) -> None:
        """Raises HearthError if this was interrupted, or a worker was lost meanwhile."""
        if self._interrupted.is_set():
            raise HearthError(Reason.SHUTTING_DOWN, "the root is shutting down")
        if self._broken is not None:
            raise self._broken

    def interrupt(self) -> None:
        """Ends `run` soon, with SHUTTING_DOWN."""
        self._interrupted.set()
        loading = self._loading
        if loading is not None:
            loading.give_up()
            return  # the links stay open, so that `run` can release the leases
        for link in list(self._links):
            link.close()

    def stream_ended(self, link: WorkerLink, error: HearthError) -> None:
        """Notes that a Forward stream ended before the cluster was formed."""
        loading = self._loading
        if link.ended is not None and loading is None:
            self._reports.add(link.address, link.ended)
        if link.ended is None:
            return  # `fail` ended it: a consequence of another error
        if link in self._links and not (loading is not None and loading.given_up):
            self._broken = self._broken or error
            if loading is not None:
                loading.give_up()

    def _reason(self, error: BaseException) -> BaseException:
        """The cause of the failure: the first error, not one that followed from it."""
        if not isinstance(error, Exception):
            return error  # of the thread itself: Ctrl-C
        if self._interrupted.is_set():
            return HearthError(Reason.SHUTTING_DOWN, "the root is shutting down")
        if isinstance(error, ModelError):  # of a file, which nothing else can cause
            return HearthError(Reason.MODEL_ERROR, str(error))
        if not isinstance(error, HearthError):
            return self._broken or error
        first = (self._broken or error) if error.reason in _CONSEQUENCES else error
        # The rank that the root itself does not reach over the mesh.
        own = blame.rank_of(error) if error.reason != Reason.PEER_LOST else 0
        return self._mesh_broke(first, own) if first.reason == Reason.PEER_LOST or own else first

    def _mesh_broke(self, first: HearthError, own: int) -> HearthError:
        """The cause of a mesh that does not connect all ranks.

        first: PEER_LOST of a worker, or the root's error. own: see open_mesh; 0 for none.
        """
        reports = self._reports
        reports.unheard(own)
        for link in self._links:
            if link.ended is not None:
                reports.add(link.address, link.ended)
        by, rank = 0, own
        if first.reason == Reason.PEER_LOST:
            by, rank = reports.rank(first.metadata["worker"]), blame.rank_of(first)
        cause = reports.cause(by, rank, first.message)
        return refine(self._links, reports, cause, first.message)

    def _describe(self) -> list[common_pb2.NodeInfo]:
        """Facts about every worker. Raises HearthError if one is absent or busy."""
        if not self._links:
            return []
        with ThreadPoolExecutor(len(self._links), "describe") as pool:
            answers = list(pool.map(self._ask, self._links))
        for link, answer in zip(self._links, answers, strict=True):
            if answer.held_by:
                # The lease of another root, or of an earlier process of this one, which expires by
                # itself. Free memory can only be measured afterwards.
                problem = f"worker {link.name} is busy: root {answer.held_by!r} holds it"
                raise HearthError(Reason.WORKER_BUSY, problem, {"worker": link.address})
            if answer.ending:
                problem = f"worker {link.name} is busy: a step of its last plan is still running"
                raise HearthError(Reason.WORKER_BUSY, problem, {"worker": link.address})
        infos = [answer.node for answer in answers]
        with self._board.change() as status:
            for node, info in zip(status.nodes[1:], infos, strict=True):
                node.info.CopyFrom(info)
                node.state = root_pb2.NODE_STATE_READY
        return infos

    def _ask(self, link: WorkerLink) -> worker_pb2.DescribeResponse:
        """Facts about a worker, after the end of any earlier epoch of this root."""
        answer = link.describe(self._lease.root_id)
        if answer.held_by_caller and answer.epoch < self._lease.epoch:
            # It could not be reached when the leases were released.
            earlier = worker_pb2.Lease(root_id=self._lease.root_id, epoch=answer.epoch)
            link.release(earlier, KEEP_SECONDS)
            answer = link.describe(self._lease.root_id)
        return answer

    def _measure(self, infos: list[common_pb2.NodeInfo]) -> list[common_pb2.NodeInfo]:
        """Measures nodes and links; leaves out workers that slow requests, and chooses the layout.

        Returns the facts about the workers that stay.
        """
        settings = self._blueprint.settings
        if not settings.predict:
            return infos
        addresses = [link.address for link in self._links]
        before = self._plan
        if self._blueprint.to_measure(addresses):
            threads = settings.threads or system.cores()
            folder, device = settings.speeds_dir, settings.device
            root = Root(self._blueprint.room, threads, settings.pin, folder, device)
            found = self._blueprint.known_machines(addresses) or measure(root, self._links, infos)
            if found is None:
                log.info("no prediction of the speed: a node could not be measured")
                return infos
            try:
                self._blueprint.measured(addresses, found)
            except ArithmeticError:  # no prediction ends a forming
                log.warning("no prediction of the speed: it cannot follow from these: %s", found)
                return infos
        left_out = self._blueprint.left_out(self._facts(infos))
        if left_out is not None:
            return self._measure(self._leave_out(left_out, infos))
        self._plan = self._blueprint.plan(addresses)
        for sentence in self._blueprint.slowing(addresses):
            log.warning("%s", sentence)
            self._plan = replace(self._plan, notes=(*self._plan.notes, sentence))
        if self._plan == before:
            return infos
        for link, node in zip(self._links, self._plan.nodes[1:], strict=True):
            link.place = node.place
        for note in self._plan.notes:
            if note not in before.notes:
                log.info("%s", note)
        with self._board.change() as status:
            for shown, planned in zip(status.nodes, self._plan.nodes, strict=True):
                shown.weight_bytes = planned.weight_bytes
                shown.placement.CopyFrom(describe.placement(planned.place))
            status.notes[:] = [*self._left_out, *self._plan.notes]
        return infos

    def _leave_out(
        self, left_out: LeftOut, infos: Sequence[common_pb2.NodeInfo]
    ) -> list[common_pb2.NodeInfo]:
        """Goes on without these workers; the facts about the others."""
        gone = [link for link in self._links if link.address in left_out.workers]
        kept = [info for link, info in zip(self._links, infos, strict=True) if link not in gone]
        sentence = f"{', '.join(link.name for link in gone)}: {left_out.reason}"
        log.warning("%s", sentence)
        self._left_out.append(sentence)
        self._links = [link for link in self._links if link not in gone]
        close_all(gone, self._lease)
        self._plan = self._blueprint.plan([link.address for link in self._links])
        for link, node in zip(self._links, self._plan.nodes[1:], strict=True):
            link.place = node.place
        with self._board.change() as status:
            nodes = [node for node in status.nodes if node.address not in left_out.workers]
            del status.nodes[:]
            status.nodes.extend(nodes)
            for shown, planned in zip(status.nodes, self._plan.nodes, strict=True):
                shown.weight_bytes = planned.weight_bytes
                shown.placement.CopyFrom(describe.placement(planned.place))
            status.notes[:] = [*self._left_out, *self._plan.notes]
        return kept

    def _facts(self, infos: Sequence[common_pb2.NodeInfo]) -> list[NodeFacts]:
        return [
            NodeFacts(info.name, info.memory_available_bytes, link.address)
            for info, link in zip(infos, self._links, strict=True)
        ]

    def _predict(self) -> None:
        """States the speed that is expected of the plan."""
        costs = self._costs
        links = None
        if costs is not None:
            speed = costs.bytes_per_second
            links = Link("mesh", costs.latency_seconds, speed, speed)
        addresses = [link.address for link in self._links]
        self.prediction = self._blueprint.prediction(self._plan, addresses, links)
        if self.prediction is None:
            return
        log.info("%s", describe.prediction_note(self.prediction))
        with self._board.change() as status:
            status.prediction.CopyFrom(describe.prediction(self.prediction))
        self._metrics.predicted(self.prediction.decode)

    def _limits(self, infos: list[common_pb2.NodeInfo]) -> Limits:
        facts = self._facts(infos)
        try:
            room = self._blueprint.cache_room(self._plan, facts)
        except HearthError as error:
            if self._blueprint.misfit(facts) is not None:
                node = int(error.metadata["node"])
                if node:
                    error.metadata["worker"] = self._links[node - 1].address
                raise
            self._change_shares([worker.address for worker in facts])
            plan, room = self._blueprint.with_disk(self._plan, facts)
            self._note(plan)
        gpus = [self._blueprint.settings.device, *(info.instruction_set for info in infos)]
        return limits_for(
            self._blueprint,
            room,
            len(self._plan.stages),
            gpus=any(each.startswith(devices.VULKAN) for each in gpus),
        )

    def _change_shares(self, workers: Sequence[str]) -> None:
        """Take the shares that fit the nodes' memory; places in the plan stay."""
        self._plan = self._blueprint.plan(workers)
        for note in self._plan.notes:
            if note.startswith("--shares"):
                log.info("%s", note)
        with self._board.change() as status:
            for node, planned in zip(status.nodes, self._plan.nodes, strict=True):
                node.weight_bytes = planned.weight_bytes
            status.notes[:] = [*self._left_out, *self._plan.notes]

    def _note(self, plan: Plan) -> None:
        """Take a plan that differs by its weights on disk, and say so."""
        before, self._plan = self._plan, plan
        for note in plan.notes[len(before.notes) :]:
            log.info("%s", note)
        with self._board.change() as status:
            status.notes[:] = [*self._left_out, *plan.notes]

    @property
    def plan(self) -> Plan:
        """The plan, whose shares may have changed in `run`."""
        return self._plan

    def _load(self, limits: Limits) -> NodeShard:
        """Loads all shards in parallel, and opens the Forward stream of each loaded worker."""
        model, settings, plan = self._blueprint.model, self._blueprint.settings, self._plan
        nodes = plan.nodes
        configs = [wire.shard_config(model.spec, node, settings, limits) for node in nodes]
        with self._board.change() as status:
            for node, config in zip(status.nodes, configs, strict=True):
                node.state = root_pb2.NODE_STATE_LOADING
                node.shard.CopyFrom(config)
        held, self.shard = self.shard, None
        if held is not None and (held.failed or held.config != configs[0]):
            held.close()  # before the new one is loaded: there may be no memory for both
            held = None
        if held is None and settings.disk_dir is not None:
            check_free(settings.disk_dir, disk_bytes(nodes[0]), "the root's")
        threads = settings.threads or system.cores()
        begins = [
            partial(wire.load_begin, model, node, config, self._lease, settings)
            for node, config in zip(nodes[1:], configs[1:], strict=True)
        ]
        loading = self._loading = Loading(
            model, plan, self._progress, self._metrics, settings.stall_seconds
        )
        try:
            self.check()  # an earlier interrupt could not end the loading
            self.shard = loading.run(
                held
                or (
                    lambda: NodeShard(
                        configs[0], threads, settings.pin, settings.device, settings.disk_dir
                    )
                ),
                self._links,
                begins,
                self._open_stream,
            )
        except BaseException:
            self.shard = held  # the kept shard has not failed
            raise
        finally:
            self._loading = None
        self.own_kept = held is not None
        self.pages_epochs = tuple(loading.pages_epochs)
        return self.shard

    def _identity(self, limits: Limits) -> bytes | None:
        """The identity of the plan's KV pages; None where none are kept on disk."""
        model, settings = self._blueprint.model, self._blueprint.settings
        if self._archive is None or not stores_pages(self._links):
            return None
        nodes = self._plan.nodes
        shards = [wire.shard_config(model.spec, node, settings, limits) for node in nodes]
        return identity_of(model, self._plan, shards, settings.sync_type, self._interrupted.is_set)

    def _pages(
        self, formation: Formation, shard: NodeShard, identity: bytes | None
    ) -> PlanPages | None:
        if self._archive is None or identity is None:
            return None
        context = node_context(
            shard.config, describe.placement(self._plan.nodes[0].place), (), shard.device
        )
        return PlanPages(
            self._archive.files, identity, context, shard, formation.tables, self._links
        )

    def _open_stream(self, link: WorkerLink) -> None:
        """Opens the Forward stream of a loaded worker.

        While others may still be loading: a worker ends a lease without an open stream.
        """
        link.open(self._lease, lambda error: self._on_end(link, error))

    def _progress(self, number: int, event: LoadEvent) -> None:
        with self._board.change() as status:
            node = status.nodes[number]
            node.weight_bytes_loaded = event.network_bytes + event.cache_bytes
            node.weight_bytes_from_network = event.network_bytes
            node.weight_bytes_from_cache = event.cache_bytes if number else 0
            address = node.address
        self._on_load(address, event)

    def _open_lanes(self) -> Lanes:
        settings = self._blueprint.settings
        mates = self._links[: len(self._plan.stages[0].ranks) - 1]
        sync_type = SYNC[settings.sync_type]
        if not self._links:
            return Lanes(None, relayed=True)
        if settings.lane == "mesh":
            encrypted = settings.security is not None and not settings.mesh_plain
            cipher = choose_cipher(self._links) if encrypted else "plain"
            stage_ranks = [len(stage.ranks) for stage in self._plan.stages]
            lanes, costs, round_trips = open_mesh(
                self._links, stage_ranks, sync_type, settings.step_seconds, cipher
            )
            self._costs = costs
            notes = [describe.mesh_note(stage_ranks, cipher, costs)]
            log.info("%s", notes[0])
            if settings.security is not None and not encrypted:
                notes.append(describe.MESH_PLAIN_NOTE)
                log.warning("%s", notes[1])
            with self._board.change() as status:
                status.notes.extend(notes)
                describe.measured(status, costs, round_trips)
            return lanes
        return Lanes(HubLane(mates, sync_type) if mates else None, relayed=True)
