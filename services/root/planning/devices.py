"""Reads a devices file: the machines of a plan, of the catalogue or with one's own figures. Pure.

[[device]]
name = "pi"           # pi1, pi2, pi3 if count is 3
kind = "pi5"          # of the catalogue; what follows replaces its figures
count = 3
memory = "7GiB"
link = "wifi"         # of the catalogue, or a table of one's own
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hearth.common.errors import HearthError, Reason
from hearth.common.sizes import parse_size
from hearth.common.spelling import nearest
from hearth.root.planning.catalogue import CATALOGUE, LINKS
from hearth.root.planning.machines import Link, Machine, check_machine, check_number

MOST_DEVICES = 256
_MOST_BYTES = 1 << 20
# Keys of a device, its field, and the factor to the field's unit.
_FIGURES = {
    "read_gb_per_second": ("read_bandwidth", 1e9),
    "prefill_gmacs": ("prefill_rate", 1e9),
    "few_rows_gmacs": ("few_rows_rate", 1e9),
    "disk_mb_per_second": ("disk_bandwidth", 1e6),
    "layer_ms": ("layer_seconds", 1e-3),
    "step_ms": ("step_seconds", 1e-3),
    "submit_ms": ("submit_seconds", 1e-3),
}
# Figures that a device of no kind can do without.
_OPTIONAL = ("step_ms", "submit_ms")
_LINK_FIGURES = {
    "latency_ms": ("latency_seconds", 1e-3),
    "send_mbit": ("send_bandwidth", 125e3),
    "receive_mbit": ("receive_bandwidth", 125e3),
}
_KEYS = ("name", "kind", "count", "memory", "link", *_FIGURES)


def read_devices(text: str, source: str) -> tuple[Machine, ...]:
    """The machines of a devices file, the root first. source: its name in errors.

    Raises HearthError BAD_SETTING naming the device and the key.
    """
    if len(text) > _MOST_BYTES:
        raise _bad(f"{source}: {len(text)} characters; a devices file has at most {_MOST_BYTES}")
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise _bad(f"{source} is not a TOML file: {error}") from None
    for key in content:
        if key != "device":
            raise _bad(f"{source}: unknown key {key!r}{nearest(key, ['device'])}: use [[device]]")
    devices = content.get("device")
    if not isinstance(devices, list) or not devices:
        raise _bad(f"{source} has no [[device]]: it needs at least one, the root's first")
    machines: list[Machine] = []
    for number, device in enumerate(devices, 1):
        where = f"{source}, device {number}"
        if not isinstance(device, dict):
            raise _bad(f"{where}: it must be a table, [[device]]")
        machines += _machines(device, where)
        if len(machines) > MOST_DEVICES:
            raise _bad(f"{source} has more than {MOST_DEVICES} devices")
    names = [machine.name for machine in machines]
    for name in names:
        if names.count(name) > 1:
            raise _bad(f"{source}: {names.count(name)} devices are named {name}: name them apart")
    return tuple(machines)


def device_text(machine: Machine) -> str:
    """The machine as a [[device]] of a devices file; its link is left to its owner."""
    lines = ["[[device]]", f"name = {json.dumps(machine.name)}"]
    lines.append(f'memory = "{machine.memory_bytes >> 20}MiB"')
    for key, (field, factor) in _FIGURES.items():
        value = getattr(machine, field)
        if value or key not in _OPTIONAL:
            lines.append(f"{key} = {value / factor:.4g}")
    lines.append(f'link = "{machine.link.kind}"')
    return "\n".join(lines)


def _machines(device: Mapping[str, Any], where: str) -> list[Machine]:
    for key in device:
        if key not in _KEYS:
            raise _bad(f"{where}: unknown key {key!r}{nearest(key, _KEYS)}")
    kind = _text(device, "kind", where)
    name = _text(device, "name", where) or kind
    if not name:
        raise _bad(f"{where} has neither name nor kind")
    where = f"{where} ({name})"
    count = device.get("count", 1)
    if type(count) is not int or not 1 <= count <= MOST_DEVICES:
        raise _bad(f"{where}: count is {count!r}; it must be in 1 to {MOST_DEVICES}")
    if kind and kind not in CATALOGUE:
        raise _bad(
            f"{where}: kind {kind!r} is not in the catalogue{nearest(kind, CATALOGUE)}: use "
            f"{', '.join(CATALOGUE)}, or leave it out and give all figures"
        )
    known = CATALOGUE.get(kind)
    figures: dict[str, float] = {
        field: _figure(device, key, field, factor, where)
        for key, (field, factor) in _FIGURES.items()
        if key in device
    }
    memory = {"memory_bytes": _memory(device["memory"], where)} if "memory" in device else {}
    link = _link(device.get("link"), where)
    if known is None:
        missing = [
            key
            for key, (field, _) in _FIGURES.items()
            if field not in figures and key not in _OPTIONAL
        ]
        missing += ["memory"] if not memory else []
        if missing:
            raise _bad(f"{where}: {', '.join(missing)} missing: give them, or a kind")
        known = replace(CATALOGUE["pi5"], kind="own")
    changes: dict[str, Any] = {**figures, **memory}
    if link is not None:
        changes["link"] = link
    machine = replace(known, name=name, **changes)
    check_machine(replace(machine, name=where))
    if count == 1:
        return [machine]
    return [replace(machine, name=f"{name}{i}") for i in range(1, count + 1)]


def _link(value: object, where: str) -> Link | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value not in LINKS:
            raise _bad(
                f"{where}: link {value!r} is not in the catalogue{nearest(value, LINKS)}: use "
                f"{', '.join(LINKS)} or a table of {', '.join(_LINK_FIGURES)}"
            )
        return LINKS[value]
    if not isinstance(value, dict):
        raise _bad(f"{where}: link is {value!r}; it must be a name or a table")
    for key in value:
        if key not in (*_LINK_FIGURES, "shared"):
            raise _bad(f"{where}: unknown key {key!r} of link{nearest(key, _LINK_FIGURES)}")
    missing = [key for key in _LINK_FIGURES if key not in value]
    if missing:
        raise _bad(f"{where}: {', '.join(missing)} of link missing")
    shared = value.get("shared", False)
    if not isinstance(shared, bool):
        raise _bad(f"{where}: shared of link is {shared!r}; it must be true or false")
    figures = {
        field: _figure(value, key, field, factor, where)
        for key, (field, factor) in _LINK_FIGURES.items()
    }
    return Link(kind="own", shared=shared, **figures)


def _figure(table: Mapping[str, Any], key: str, field: str, factor: float, where: str) -> float:
    value = table[key]
    if type(value) not in (int, float):
        raise _bad(f"{where}: {key} is {value!r}; it must be a number")
    try:
        return check_number(f"{where}: {key} is {value}", field, float(value) * factor)
    except OverflowError:
        raise _bad(f"{where}: {key} is too large") from None


def _memory(value: object, where: str) -> int:
    try:
        return parse_size(value if isinstance(value, str) else "")
    except ValueError:
        raise _bad(f'{where}: memory is {value!r}; it must be a size such as "7GiB"') from None


def _text(device: Mapping[str, Any], key: str, where: str) -> str:
    value = device.get(key, "")
    if not isinstance(value, str) or len(value) > 100 or not value.isprintable():
        raise _bad(f"{where}: {key} must be a printable text of at most 100 characters")
    return value


def _bad(problem: str) -> HearthError:
    return HearthError(Reason.BAD_SETTING, problem)
