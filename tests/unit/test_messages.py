"""Lines for people: causes of lost connections, a worker's log, the picture of a cluster."""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hearth.cli.cluster import describe
from hearth.client import causes as client_causes
from hearth.common import causes
from hearth.common.logging import setup
from hearth.common.terminal import one_line, safe
from hearth.root.cluster.asking import without_name
from hearth.v1 import common_pb2, root_pb2
from hearth.worker import load_log
from hearth.worker.greeting import addresses, greet
from hearth.worker.load_log import LoadLog

# A root's log


def test_log_lines_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        setup("INFO", json_lines=True)
        log = logging.getLogger("hearth.test")
        log.info("a %s\nb \x1b[31m", "name", extra={"fields": {"request_id": "one", "tokens": 3}})
        try:
            raise ValueError("oh")
        except ValueError:
            log.exception("failed")
    finally:
        root.handlers[:], root.level = before, level
    first, second = capsys.readouterr().err.splitlines()
    line = json.loads(first)
    assert line["message"] == "a name\nb \x1b[31m"
    assert "\x1b" not in first
    assert (line["level"], line["logger"]) == ("INFO", "hearth.test")
    assert (line["request_id"], line["tokens"]) == ("one", 3)
    assert datetime.datetime.fromisoformat(line["time"]).tzinfo is not None
    assert "ValueError: oh" in json.loads(second)["exception"]


_TLS = "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:"
_SSL = ":SSL routines:OPENSSL_internal:"
_VERIFY = "CERTIFICATE_VERIFY_FAILED: "
_BAD = "the other end's certificate is not accepted: "
_ALL = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:7717: "


@pytest.mark.parametrize(
    ("details", "cause"),
    [
        (_ALL + "Failed to connect to remote host: Connection refused", "connection refused"),
        (_ALL + "Failed to connect to remote host: No route to host", "no route to the host"),
        (_ALL + "Failed to connect to remote host: Timeout occurred", "no answer in time"),
        ("DNS resolution failed for pi2:7717: C-ares status", "unknown name pi2"),
        ("errors resolving pi2:7717: [Domain name not found]", "unknown name pi2"),
        ("Stream removed (Socket closed)", "the connection broke"),
        (
            _ALL + "connection attempt timed out before receiving SETTINGS frame",
            "no answer in time",
        ),
        ("Deadline Exceeded", "no answer in time"),
        (
            _ALL + _TLS + "1000007d" + _SSL + _VERIFY + "certificate has expired: OK",
            _BAD + "certificate has expired",
        ),
        (_ALL + _TLS + "1000007d" + _SSL + _VERIFY.rstrip(": "), _BAD.rstrip(": ")),
        (_ALL + _TLS + "100000f7" + _SSL + "WRONG_VERSION_NUMBER", "only one end uses TLS"),
        (_ALL + _TLS + "10000416" + _SSL + "TLSV1_ALERT_UNKNOWN_CA", "the TLS handshake failed"),
        (_ALL + "Failed parsing HTTP/2 (Expected SETTINGS frame)", "what answers is not gRPC"),
        ("something new", "something new"),
    ],
)
def test_causes_of_lost_connections(details: str, cause: str) -> None:
    assert causes.short_cause(details) == cause
    assert client_causes.short_cause(details) == cause


@pytest.mark.parametrize(
    ("message", "left"),
    [
        ("worker pi2:7717 cannot be reached", "cannot be reached"),
        ("worker pi2:7717: cannot be reached", "cannot be reached"),
        ("worker pi (pi2:7717) was lost: it ended", "was lost: it ended"),
        ("worker other:7717 was lost", "worker other:7717 was lost"),
        ("busy", "busy"),
    ],
)
def test_a_reason_does_not_name_the_worker_again(message: str, left: str) -> None:
    assert without_name(message, "pi2:7717") == left


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb\rc", "a\nbc"),
        ("\x1b]52;c;eA==\x07", "\\x1b]52;c;eA==\\x07"),
        ("\x9b31m\x00\x7f\x85", "\\x9b31m\\x00\\x7f\\x85"),
        ("\u202eabc\u2066\u200f\u061c", "\\u202eabc\\u2066\\u200f\\u061c"),
        ("Größe 👩\u200d👧 こ", "Größe 👩\u200d👧 こ"),
    ],
)
def test_nothing_moves_the_cursor(text: str, shown: str) -> None:
    assert safe(text) == shown
    assert "".join(map(safe, text)) == shown  # also where a sequence comes in pieces


@given(st.text())
def test_a_peers_words_stay_on_their_line(text: str) -> None:
    shown = one_line(text)
    assert len(f"a{shown}b".splitlines()) == 1
    assert "\t" not in shown
    assert one_line(shown) == shown == safe(shown)


def _info(name: str = "pi") -> common_pb2.NodeInfo:
    return common_pb2.NodeInfo(name=name, threads=4, cores=8, memory_available_bytes=3 << 30)


def test_a_worker_says_what_it_offers_and_where(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        greet("127.0.0.1:0", 5000, _info())
        greet("nas:7717", 7717, _info())
        greet("0.0.0.0:7717", 7717, _info())
    assert "worker pi offers 3.0 GiB of memory and 4 threads" in caplog.text
    assert "for this machine only; --listen 0.0.0.0:5000 serves other machines" in caplog.text
    assert "on the root: --workers nas:7717" in caplog.text
    assert "0.0.0.0:7717" not in caplog.text
    for text in addresses("::"):
        address = ipaddress.ip_address(text)
        assert not (address.is_loopback or address.is_unspecified or address.is_link_local)
    assert addresses("192.168.1.21") == ["192.168.1.21"]


def test_a_worker_says_how_far_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_log, "_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        lines = LoadLog("nas", 3, 4 << 20)
        lines.progress(1 << 20)
        lines.progress(4 << 20)  # the end has a line of its own
        lines.done(3 << 20)
    said = [record.message for record in caplog.records]
    assert said[0] == "root nas took this worker (plan 3): 4.0 MiB of weights"
    assert said[1] == "loading weights: 25 % of 4.0 MiB"
    assert "3.0 MiB sent, 1.0 MiB cached" in said[2]
    assert len(said) == 3


def _status(state: root_pb2.ClusterState.ValueType, epoch: int) -> root_pb2.ClusterStatus:
    status = root_pb2.ClusterStatus(
        state=state, epoch=epoch, reason="because", model="demo", context_size=512
    )
    loading = root_pb2.NODE_STATE_LOADING
    status.nodes.add(
        address="local",
        state=loading,
        info=_info("nas"),
        weight_bytes=3 << 20,
        weight_bytes_loaded=3 << 20,
    )
    status.nodes.add(
        address="pi:7717",
        state=loading,
        info=_info(),
        weight_bytes=1 << 20,
        weight_bytes_loaded=1 << 18,
        reason="slow",
    )
    status.nodes.add(address="pi2:7717", state=root_pb2.NODE_STATE_LOST, reason="absent")
    for address in ("pi:7717", "pi2:7717"):
        reason = "cannot be reached" if address == "pi2:7717" else ""
        status.peers.add(address=address, sources=["static"], reason=reason)
    return status


def test_the_picture_of_a_cluster_that_loads() -> None:
    lines = describe(_status(root_pb2.CLUSTER_STATE_FORMING, 1))
    assert lines[0] == "loading, 81 % of 4.0 MiB: because"
    assert lines[1].startswith("model demo, context of 512 positions (plan 1,")
    cells = [line.split("  ") for line in lines[2:6]]
    assert [row[-1].strip() for row in cells] == ["share", "75 %", "25 %", "0 %"]
    assert "1.0 MiB (25 %)" in lines[4]
    assert " lost " not in lines[5]
    assert " absent " in lines[5]
    # Once, in the worker's own line.
    assert [line for line in lines if "pi2:7717" in line][1:] == [
        "worker pi2:7717 [static]: out, unspecified: cannot be reached"
    ]


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\t", "\x0b", "\x85", "\u2028"])
def test_no_field_of_a_status_forges_a_line(mark: str) -> None:
    """Every text of the message, also in lists, holds a line of its own."""
    status = _status(root_pb2.CLUSTER_STATE_SERVING, 1)
    status.notes.append("a note")
    honest = describe(status)
    forged = f"x{mark}worker evil (10.0.0.9:7717) [static]: in"

    def forge(message: Any) -> None:
        for field in message.DESCRIPTOR.fields:
            repeated = field.is_repeated
            if field.type == field.TYPE_STRING:
                if repeated:
                    getattr(message, field.name).append(forged)
                else:
                    setattr(message, field.name, forged)
            elif field.type == field.TYPE_MESSAGE and not field.message_type.GetOptions().map_entry:
                value = getattr(message, field.name)
                for each in value if repeated else [value] if message.HasField(field.name) else []:
                    forge(each)

    forge(status)
    lines = describe(status)
    # A reason for each node and another note are lines of their own.
    assert len(lines) <= len(honest) + len(status.nodes) + 1
    assert all(len(line.splitlines()) == 1 and "\t" not in line for line in lines)
    assert not [line for line in lines if line.startswith("worker evil")]


def test_a_cluster_that_was_never_formed_waits() -> None:
    assert describe(_status(root_pb2.CLUSTER_STATE_DEGRADED, 0))[0] == "waiting: because"
    assert describe(_status(root_pb2.CLUSTER_STATE_DEGRADED, 2))[0] == "degraded: because"
