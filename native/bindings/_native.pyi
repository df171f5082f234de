"""Types of the compute core's bindings; shapes are [rows, columns], row-major."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def instruction_set() -> str:
    """The kernels in use: "avx512", "avxvnni", "avx2"; "i8mm", "dotprod", "neon"; "scalar".

    ValueError when HEARTH_INSTRUCTION_SET names kernels that this machine lacks.
    """

def missing_instructions() -> list[str]: ...
def instruction_sets() -> list[str]:
    """The kernels that this CPU can run, best first; "scalar" is always the last."""

def set_instruction_set(name: str) -> None:
    """Chooses the kernels of shards made from now on; ValueError when the CPU lacks them."""

def row_bytes(type: str, columns: int) -> int:
    """Bytes of one row of `columns` elements; ValueError when they are not whole blocks."""

class DeviceError(RuntimeError):
    """A device that is not there, cannot do what is asked, has no memory left, or is lost."""

class DeviceInfo:
    """A GPU that Vulkan offers."""

    id: str  # "vulkan:0"
    name: str
    kind: str  # "discrete", "integrated", "virtual", "cpu" or "other"
    memory_bytes: int  # of its own
    free_bytes: int  # of it, for this process; all of it where the driver does not say

def has_vulkan() -> bool:
    """False for a core that was built without Vulkan."""

def list_devices() -> list[DeviceInfo]:
    """The GPUs that this build and the drivers offer, in the order of their numbers."""

def parse_vulkan_device(id: str) -> int:
    """The number of vulkan (0) or vulkan:N; ValueError for other text."""

def read_bandwidth(
    threads: int, bytes: int = ..., repeats: int = ..., pin: Sequence[int] = ()
) -> float:
    """Bytes per second that so many threads read from memory; takes about a tenth of a second."""

def kv_head_bytes(type: str, key_size: int, value_size: int, page_size: int) -> int:
    """Bytes of K and V of one head in one page; ValueError when q80 lacks whole blocks."""

def gated_delta_bytes(group: int, key_size: int, value_size: int, width: int, undo: int = 0) -> int:
    """Bytes of the state of one sequence and key head, with its `group` value heads.

    undo: positions that it can go back.
    """

# Most positions that a state can go back.
MOST_UNDO: int

def quantize(x: NDArray[np.float32], type: str) -> NDArray[np.uint8]:
    """f32 [rows, columns] -> uint8 [rows, row_bytes(type, columns)]."""

def dequantize(data: NDArray[np.uint8], type: str, columns: int) -> NDArray[np.float32]:
    """uint8 [rows, row_bytes(type, columns)] -> f32 [rows, columns]."""

def convert(
    data: NDArray[np.uint8], source: str, target: str, begin: int, end: int
) -> tuple[NDArray[np.uint8], float]:
    """Columns [begin, end) of uint8 [rows, bytes of `source`] as rows of `target`.

    source: a weight type, or another of GGUF's formats in small letters ("q4_k"). Also the largest
    magnitude: infinite or NaN where a number is, and the bytes mean nothing then. ValueError for
    bytes that are not whole blocks of either type.
    """

def largest_scale(data: NDArray[np.uint8], type: str) -> float:
    """Of rows the largest scale (q80, q40) or number (others): infinite or NaN if one is."""

def random_slice(
    type: str,
    seed: int,
    row_begin: int,
    rows: int,
    column_begin: int,
    columns: int,
    total_columns: int,
    scale: float,
) -> NDArray[np.uint8]:
    """A cut of a random matrix: the same bytes as that place of the whole."""

def best(
    logits: NDArray[np.float32], count: int, first_id: int
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """The best `count` of each row [rows, n], better first: f32 and u32 ids, [rows, count].

    ValueError when a row has fewer than `count`.
    """

# Tokens up to which a nucleus is exact, and steps by which the logits behind them are counted.
NUCLEUS_TOKENS: int
LOGIT_STEPS: int

def drawn(
    logits: NDArray[np.float32],
    count: int,
    first_id: int,
    temperature: float,
    seed: int,
    number: int,
    nucleus: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.uint32]]:
    """The tokens of a row [n] that a draw may choose under some min-p: f32 and u32 ids, [count].

    The one that it chooses without comes first, the rest is filled up. With `nucleus` those under
    any top-p too: the best NUCLEUS_TOKENS come first, and the logits of the row are counted, u32
    [LOGIT_STEPS], else [0]. ValueError for a row with fewer than `count`, and a temperature that is
    not in (0, 100].
    """

def gumbel_noise(seed: int, number: int, token: int) -> float:
    """The noise that a draw adds to a token's logit / temperature."""

def masked(
    logits: NDArray[np.float32], allowed: NDArray[np.uint8], value: float, first_id: int = 0
) -> NDArray[np.float32]:
    """A copy of [n] logits of the tokens from first_id on, with `value` for some of them.

    These are the tokens whose bit in `allowed` is 0, the lowest of a byte first. ValueError for too
    few bits.
    """

def not_finite_rows(values: NDArray[np.float32]) -> list[int]:
    """The rows of f32 [rows, n] that hold an infinity or NaN."""

class Lane:
    """Transport of syncs. Subclass it and define all_reduce.

    A lane that rounds also defines all_reduce_exact, which takes the same and sums in f32.
    """

    def __init__(self) -> None: ...
    def all_reduce(self, x: NDArray[np.float32]) -> None:
        """Adds up x over all ranks, in place: f32 [rows, hidden_size], of this call only.

        TypeError for an array of another type or order: a copy would be summed and dropped.
        """

class LaneError(RuntimeError):
    """A rank that is lost, silent or out of step, or whose frames arrive changed.

    Or this rank itself, after `abort` or `close`.
    """

    rank: int

class LinkCosts:
    """Measured costs of a sync over the ranks' links; picoseconds per byte sent, or added."""

    def __init__(self, *, latency_ns: int, byte_ps: int, add_ps: int) -> None: ...
    @property
    def latency_ns(self) -> int: ...
    @property
    def byte_ps(self) -> int: ...
    @property
    def add_ps(self) -> int: ...

def mesh_ciphers() -> list[str]:
    """Ciphers that this machine can encrypt a mesh with, the faster first; none without libcrypto.

    libcrypto is OpenSSL's, and the one that Python's `ssl` uses where that is a shared library.
    """

def direct_bytes(ranks: int, wire: str, costs: LinkCosts) -> int:
    """Parts of up to so many bytes go direct, larger ones scattered; ValueError for 1 rank."""

class MeshLane(Lane):
    """Syncs over the ranks' own TCP connections, driven without the GIL."""

    def __init__(
        self,
        *,
        rank: int,
        sockets: Sequence[int],
        wire: str,
        deadline_seconds: float,
        cipher: str,
        keys: Sequence[tuple[bytes, bytes]],
        direct_bytes: int = 0,
        first_rank: int = 0,
    ) -> None:
        """sockets: the descriptor of each rank's connection, -1 for oneself; the lane's own.

        cipher: one of mesh_ciphers, or "plain" for a keyed check alone. keys: 32 bytes to send with
        and 32 to receive with, for each rank's connection. direct_bytes: parts of up to so many go
        direct, until it is measured. first_rank: added to ranks in errors. ValueError, or
        RuntimeError without libcrypto.
        """

    def measure(self, seconds: float) -> LinkCosts:
        """Measures the links, on all ranks at once, and chooses how syncs travel.

        All ranks get the same, the worst that any of them saw. Before the first `begin`; raises
        LaneError, at the latest after `seconds`.
        """

    @property
    def direct_bytes(self) -> int: ...
    def begin(self, step_id: int) -> None:
        """The next syncs are those of step `step_id`, counted from 0."""

    def abort(self) -> None:
        """Ends a sync that is under way, from any thread, with LaneError."""

    def close(self) -> None:
        """Ends the connections, from any thread; a sync that is under way raises LaneError."""

    @property
    def sent_bytes(self) -> int:
        """Since `begin`."""

    @property
    def received_bytes(self) -> int: ...

class StageLink:
    """A connection to a node of the next stage, or of the one before: activations go one way."""

    def __init__(
        self,
        *,
        rank: int,
        peer: int,
        socket: int,
        deadline_seconds: float,
        cipher: str,
        keys: tuple[bytes, bytes],
    ) -> None:
        """rank, peer: in the mesh, as LaneErrors name them. socket: a descriptor, the link's own.

        cipher, keys: see MeshLane. ValueError, or RuntimeError without libcrypto.
        """

    def send(self, step_id: int, payload: bytes) -> None:
        """Sends a step's activations; a large frame goes on while the caller computes.

        Raises LaneError, also for an earlier frame.
        """

    def receive(self, step_id: int, size: int) -> NDArray[np.uint8]:
        """Waits for a step's activations: u8 [size]. Raises LaneError."""

    def abort(self) -> None:
        """Ends a wait that is under way, from any thread, with LaneError."""

    def close(self) -> None:
        """Ends the connection, from any thread."""

class StepOutput:
    """Output of a step: logits on the last stage, activations on the others."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """f32 [output rows, this rank's vocabulary rows]."""

    @property
    def activations(self) -> NDArray[np.float32]:
        """f32 [rows, hidden_size]; empty on the last stage."""

    @property
    def not_finite(self) -> list[tuple[int, int]]:
        """(row, sync) of the rows that stopped being finite: infinity or NaN.

        sync: where this rank saw it first, as the number of the sync to which its own part was not
        finite. The number of syncs stands for the last block's output, one more for the logits. The
        rank with a row's lowest number is the source.
        """

    @property
    def wall_ns(self) -> int: ...
    @property
    def compute_ns(self) -> int: ...
    @property
    def sync_ns(self) -> int: ...

class RopeConfig:
    """A rotary position embedding of a head's first 2 * len(frequencies) elements."""

    def __init__(self, *, frequencies: Sequence[float], magnitude: float = 1.0) -> None: ...

class AttentionConfig:
    """The attention of a kind of block; ranges are counted over the whole model."""

    def __init__(
        self,
        *,
        heads: tuple[int, int],
        kv_heads: tuple[int, int],
        key_size: int,
        value_size: int,
        scale: float,
        rope: int | None,
        window: int = 0,
        softcap: float = 0.0,
        bias: bool = False,
        output_bias: bool = False,
        head_norm: bool = False,
        sinks: bool = False,
        gate: bool = False,
        row_norm: tuple[int, int] | None = None,
        temperature: tuple[float, float] | None = None,
        value_norm: bool = False,
        keys_as_values: bool = False,
        kv_layer: int | None = None,
    ) -> None: ...

class LatentAttentionConfig:
    """The latent attention of a kind of block; `heads` are counted over the whole model."""

    def __init__(
        self,
        *,
        heads: tuple[int, int],
        query_rank: int = 0,
        kv_rank: int,
        nope_size: int,
        rope_size: int,
        value_size: int,
        scale: float,
        rope: int | None,
        norm_epsilon: float = 1e-6,
    ) -> None: ...

class GateClamp:
    """The limits of a gated feed-forward."""

    def __init__(self, *, limit: float, factor: float = 1.0, offset: float = 0.0) -> None: ...

class GatedDeltaConfig:
    """The gated delta rule of a kind of block; ValueError for an unknown activation."""

    def __init__(
        self,
        *,
        key_heads: tuple[int, int],
        group: int,
        tile: int = 1,
        key_size: int,
        value_size: int,
        width: int,
        activation: str = "silu",
    ) -> None: ...

class FeedForwardConfig:
    """The feed-forward of a kind of block; ValueError for an unknown activation."""

    def __init__(
        self,
        *,
        units: tuple[int, int],
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
        output_bias: bool = False,
        clamp: GateClamp | None = None,
    ) -> None: ...

class ExpertsConfig:
    """The experts of a kind of block; ValueError for unknown scores."""

    def __init__(
        self,
        *,
        count: int,
        used: int,
        expert: FeedForwardConfig,
        scores: str = "softmax",
        normalize: bool = True,
        scale: float = 1.0,
        router_bias: bool = False,
        choice_bias: bool = False,
        groups: int = 1,
        used_groups: int = 1,
        expert_scales: bool = False,
    ) -> None: ...

class BlockConfig:
    """A kind of block: layers of one kind have the same shape."""

    def __init__(
        self,
        *,
        mixer: AttentionConfig | LatentAttentionConfig | GatedDeltaConfig,
        feed_forward: FeedForwardConfig,
        experts: ExpertsConfig | None = None,
        feed_forward_gate: bool = False,
        input_norms: bool = True,
        output_norms: bool = False,
        residual_scale: float = 1.0,
        separate_norms: bool = False,
        layer_scale: bool = False,
    ) -> None: ...

class LayerInputsConfig:
    """Inputs of each layer's own; ValueError for an unknown activation."""

    def __init__(
        self,
        *,
        size: int,
        layers: int,
        activation: str,
        embedding_scale: float = 1.0,
        projection_scale: float = 1.0,
        sum_scale: float = 1.0,
    ) -> None: ...

class ShardConfig:
    """The shape of a shard; ValueError for an unknown norm or KV type."""

    def __init__(
        self,
        *,
        hidden_size: int,
        layers: tuple[int, int],
        kinds: Sequence[BlockConfig],
        kind_of_layer: Sequence[int],
        norm: str = "rms",
        norm_epsilon: float,
        ropes: Sequence[RopeConfig],
        kv_type: str,
        page_size: int,
        max_pages: int,
        max_step_tokens: int,
        max_sequences: int = 0,
        max_undo: int = 0,
        embedding: bool,
        vocab_size: int,
        embedding_scale: float = 1.0,
        learned_positions: int = 0,
        vocab: tuple[int, int],
        head_from_embedding: bool = False,
        head_bias: bool = False,
        logit_scale: float = 1.0,
        logit_softcap: float = 0.0,
        layer_inputs: LayerInputsConfig | None = None,
    ) -> None: ...

class Shard:
    """One node's part of a model, and its steps. Not for use by two threads at once."""

    def __init__(
        self,
        config: ShardConfig,
        *,
        threads: int,
        pin: Sequence[int] = (),
        device: str = "cpu",
        disk_layers: Sequence[int] = (),
        disk_folder: str = "",
    ) -> None:
        """device: "cpu", "vulkan" or "vulkan:N"; DeviceError for one that cannot run the config.

        disk_layers: of the model, whose weights lie in a file in disk_folder; on a CPU only.
        """
    def expected(self) -> dict[str, tuple[int, int]]:
        """Every slice that the shard needs: name -> (rows, columns)."""

    def load(self, name: str, type: str, data: object, first_row: int = 0) -> None:
        """Packs rows of a slice for this CPU: groups of eight, one after another to the last row.

        A slice that is not complete may begin again at row 0. ValueError on an unknown name, rows
        out of turn, a complete slice, or a wrong size.
        """

    def missing(self) -> list[str]:
        """Slices not loaded yet."""

    @property
    def weight_bytes(self) -> int: ...
    @property
    def disk_bytes(self) -> int:
        """Of the weights, the bytes that take no memory."""
    @property
    def kv_bytes(self) -> int: ...
    @property
    def kv_pages(self) -> int: ...
    def release_pages(self, first: int) -> None:
        """Gives the memory of KV page `first` and those after it back; their content is lost."""

    def copy_state(self, source: int, target: int, position: int) -> None:
        """Copies the state of recurrent mixers from a slot to another.

        Raises ValueError if `source` does not hold the state after `position` positions.
        """

    @property
    def page_bytes(self) -> int:
        """Bytes of a KV page on this node."""

    @property
    def state_bytes(self) -> int:
        """Bytes of a slot's state; 0 where no mixer is recurrent."""

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """The content of a KV page: u8 [page_bytes]. ValueError for a page without memory."""

    def write_page(self, page: int, data: object) -> None:
        """Replaces the content of a KV page. ValueError for another page or size."""

    def read_state(self, slot: int, position: int) -> NDArray[np.uint8]:
        """The state of a slot after `position` positions: u8 [state_bytes].

        Raises ValueError if the slot does not hold that.
        """

    def write_state(self, slot: int, position: int, data: object) -> None:
        """Replaces the state of a slot. ValueError for another slot or size."""

    def embed(
        self, tokens: NDArray[np.uint32], positions: NDArray[np.uint32]
    ) -> NDArray[np.float32]:
        """[n] token ids and their positions -> f32 [n, hidden_size].

        positions are read only by models that have learned positions, and may be empty for others.
        ValueError on an id outside the vocabulary, or a position that the model lacks.
        """

    def final_norm(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """f32 [n, hidden_size] of the last stage's output -> the same after the final norm.

        ValueError for another shape, RuntimeError without a head or before all slices are loaded.
        """

    def step(
        self,
        activations: NDArray[np.float32],
        sequences: Sequence[tuple[int, int, Sequence[int] | NDArray[np.uint32]]],
        output_rows: Sequence[int],
        lane: Lane | None,
        slots: Sequence[int] = (),
        undo: Sequence[int] = (),
    ) -> StepOutput:
        """One forward pass of a batch.

        activations: f32 [rows, hidden_size]; sequences: (rows, position, pages u32 [n]) of each
        sequence, in row order. slots: of their states, where a mixer is recurrent. undo: the
        positions that each may go back in its next step, up to `max_undo`; none where empty. Raises
        ValueError for shapes, positions, pages, slots or undo that do not fit, RuntimeError when
        slices are missing, and whatever the lane raises.
        """

class Sampler:
    """Chooses tokens. One for each sequence: it counts draws, and knows the tokens seen."""

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None: ...
    def draw(self, ahead: int = 0) -> tuple[float, int, int]:
        """Temperature, seed and number of a draw, `ahead` after the next.

        With a temperature of 0 nothing is drawn.
        """

    def sample(
        self,
        logits: NDArray[np.float32],
        ids: NDArray[np.uint32] | None = None,
        tails: tuple[NDArray[np.float32], NDArray[np.uint32]] | None = None,
    ) -> int:
        """f32 [n] -> token id; logits of all tokens in order, or of the candidates `ids`.

        tails: of ids for a nucleus; each rank's best logit, and its counts, [ranks, LOGIT_STEPS].
        -inf is impossible. RuntimeError for NaN, +inf, and where every token is impossible.
        """

    def accept(self, token: int) -> None:
        """Counts a token as seen (prompt and answer alike), for the repetition penalty."""

    def accept_prompt(self, tokens: NDArray[np.uint32]) -> None:
        """Counts all tokens [n] of a prompt as seen."""

class Front:
    """A bounded front of a gRPC server: see native/include/hearth/front.h.

    A connection's key is the port from which the front connects to the server.
    """

    def __init__(
        self,
        *,
        listeners: Sequence[int],
        backend: int,
        tls: bool,
        connections: int,
        strangers: int,
        silence_seconds: float,
        settle_seconds: float,
    ) -> None:
        """Takes the descriptors of listening sockets; forwards to `backend` on 127.0.0.1."""

    def peer(self, key: int) -> tuple[str, int] | None:
        """The peer's address, while its connection is open."""

    def called(self, key: int) -> None:
        """Notes a call that was not authorized; too many of them close the connection."""

    def admit(self, key: int, *, settled: bool) -> bool:
        """Ends the limit on a connection's bytes; with `settled` false, once SETTINGS are
        acknowledged. False if there is no place for it: it is closed."""

    def refused(self, seconds: float) -> list[tuple[str, int, str]]:
        """Waits for refused connections, at most `seconds`: host, port and cause of each."""

    def stop_listening(self) -> None:
        """No new connections from now on."""

    def close(self, seconds: float) -> None:
        """Waits until what the server sent is forwarded, `seconds` at most; closes everything."""

    def counts(self) -> list[int]:
        """Open connections, those to the server among them, and admitted ones."""
