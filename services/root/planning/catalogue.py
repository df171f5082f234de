"""Common machines and links, for plans of machines that nobody has measured yet.

A figure of a published table is the fit of `calibrate` to its columns of one and of two devices
(docs/planning.md). Others follow from data sheets, times the part of a data sheet's figure that the
measured machines reach; each has its source beside it. A probe of the machine itself is better.
"""

from dataclasses import replace

from hearth.root.planning.machines import Link, Machine

_GB = 1e9
_MBIT = 125e3

# Half of a round trip, and the payload's part of the line's rate.
LINKS = {
    # 0.1 ms: a small message of two Linux machines through a switch, both sides' wake-up included.
    # 94 %: Ethernet frames of 1,538 bytes on the wire carry 1,448 of payload.
    "gigabit": Link("gigabit", 100e-6, 941 * _MBIT, 941 * _MBIT),
    "2.5-gigabit": Link("2.5-gigabit", 80e-6, 2353 * _MBIT, 2353 * _MBIT),
    "10-gigabit": Link("10-gigabit", 50e-6, 9410 * _MBIT, 9410 * _MBIT),
    # 0.15 ms: a frame of 1,538 bytes takes 0.12 ms by itself.
    "100-megabit": Link("100-megabit", 150e-6, 94 * _MBIT, 94 * _MBIT),
    # 802.11ac in one room, assumed: 2 ms each way, and half of 866 Mbit/s lost to the protocol;
    # every message between two machines crosses the air twice.
    "wifi": Link("wifi", 2e-3, 200 * _MBIT, 200 * _MBIT, shared=True),
    # A radio through a wall: 5 ms and 50 Mbit/s.
    "weak-wifi": Link("weak-wifi", 5e-3, 50 * _MBIT, 50 * _MBIT, shared=True),
}

_GIGABIT = LINKS["gigabit"]
# Of the system's and other programs' memory.
_SYSTEM = 1 << 30


def _machine(
    kind: str,
    memory_gib: int,
    read: float,
    prefill: float,
    few: float,
    disk: float,
    layer_ms: float,
    step_ms: float,
) -> Machine:
    return Machine(
        kind,
        kind,
        (memory_gib << 30) - _SYSTEM,
        read * _GB,
        prefill * _GB,
        few * _GB,
        disk * _GB,
        layer_ms / 1e3,
        _GIGABIT,
        step_ms / 1e3,
    )


# Of a GPU's bandwidth by its data sheet, the part that decoding reaches. On an H100 a skeleton of
# decode (shapes and dispatches of Llama 3 8B) ran at 361 tokens/s where memory allows 790. Others
# are assumed to reach the same part. Hearth itself was measured on none of them.
_GPU_READS = 0.45
# A kernel reads weights once for eight rows, of prompts too; half of that rate is assumed. Bytes
# are those of a weight in q4_0.
_GPU_ROWS, _GPU_FEEDS, _WEIGHT_BYTES = 8, 0.5, 18 / 32


def _gpu(kind: str, memory_gib: int, data_sheet: float) -> Machine:
    """A machine's GPU by its memory in GiB and GB/s."""
    read = _GPU_READS * data_sheet
    products = _GPU_FEEDS * _GPU_ROWS * read / _WEIGHT_BYTES
    # Of a layer: eight dispatches and their barriers at 2 us, measured on an H100, and starts. A
    # blocking wait took 35 us there. Disk: NVMe. A root's work is that of a PC.
    found = _machine(kind, memory_gib, read, products, products, 3.0, 0.02, 0.5)
    return replace(found, submit_seconds=35e-6)


# Memory in GiB; bytes/s read in GB; multiply-adds/s in 10^9, of prefill and of few rows; disk in
# GB/s; ms of a layer's fixed work; ms of a root's work on a step. Few rows, a root's work, and the
# fixed work of machines without a table are assumed. A root's work is 0.5 ms on a Zen 5.
CATALOGUE = {
    machine.kind: machine
    for machine in (
        # Raspberry Pi 4B. Reading and fixed work: published table, Llama 2 7B on 1 and 2 devices.
        # Products: Cortex-A72 has no SDOT: 4 cores x 1.8 GHz x 8 int8 multiply-adds a cycle, of
        # which a third. Disk: a UHS-I card.
        _machine("pi4", 8, 3.27, 19, 12, 0.04, 5.3, 4.0),
        # Raspberry Pi 5. Reading and fixed work: published table, Llama 2 7B on 1 and 2 devices.
        # Products: Cortex-A76: 4 cores x 2.4 GHz x 32 (two SDOT a cycle), of which a third.
        # Disk: a UHS-I card at SDR104.
        _machine("pi5", 8, 10.5, 102, 60, 0.08, 2.5, 1.5),
        # Mini PC with an Intel N100: one channel of DDR5-4800 is 38.4 GB/s, of which 70 %; 4 cores
        # x 2.9 GHz x 32 (AVX-VNNI on half-wide units), of which a third. Disk: NVMe of two lanes.
        _machine("n100", 16, 27, 120, 80, 1.5, 0.5, 1.0),
        # Office PC of 2019 to 2022: two channels of DDR4-3200 are 51.2 GB/s, of which 75 %; 6
        # cores, 95 to 160 x 10^9 multiply-adds each (docs/performance.md, AVX2). Disk: NVMe.
        _machine("pc-ddr4", 16, 38, 600, 300, 2.0, 0.25, 0.7),
        # PC of 2023 on: two channels of DDR5-5600 are 89.6 GB/s, of which 75 %; 8 cores, 140 to
        # 190 x 10^9 each (docs/performance.md, AVX-VNNI). Disk: NVMe.
        _machine("pc-ddr5", 32, 67, 1200, 500, 3.0, 0.2, 0.5),
        # Rented machine of 30 virtual CPUs (c3d-highcpu-30). Reading and fixed work: published
        # table, Llama 2 7B on 1 and 2 machines. Products: 15 cores as in pc-ddr5. Disk: network.
        _machine("c3d-highcpu-30", 59, 47, 2000, 800, 0.5, 0.69, 0.6),
        # GPUs; memory and GB/s by the data sheets of their makers.
        _gpu("rtx-3060", 12, 360),
        _gpu("rtx-4090", 24, 1008),
        _gpu("rx-7900-xtx", 24, 960),
        _gpu("arc-a770", 16, 560),
        _gpu("h100", 80, 3350),
    )
}
