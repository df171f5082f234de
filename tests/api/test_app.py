"""A root put together from Python, without the command line."""

import pytest

from hearth.client import Client
from hearth.common.errors import HearthError, Reason
from hearth.converter import open_model
from hearth.root.app import core, serving
from hearth.root.engine.mailbox import Done
from hearth.root.engine.params import GenerateParams
from hearth.root.settings import ClusterSettings, Joining, Serving

SETTINGS = ClusterSettings(threads=1, context=64, sequences=1)


def test_a_root_serves_and_ends() -> None:
    with open_model("demo") as model:
        with core(model, SETTINGS, form=False, pause_seconds=5) as running:
            ids = model.tokenizer().encode("Once upon")
            with pytest.raises(HearthError) as error:
                list(running.engine.generate(GenerateParams(tuple(ids), 4)))
            assert error.value.reason == Reason.CLUSTER_NOT_READY
            with serving(running, Serving(listen="127.0.0.1:0")) as port:
                with Client(f"127.0.0.1:{port}") as client:
                    served = client.generate_text("Once upon", max_tokens=4)
            assert not running.engine.busy
        with core(model, SETTINGS) as running:
            events = list(running.engine.generate(GenerateParams(tuple(ids), 4)))
            assert isinstance(events[-1], Done)
            texts = [event.text for event in events if not isinstance(event, Done)]
    assert str(served) == "".join(texts)


def test_too_few_workers_end_the_start_and_close_the_port() -> None:
    settings = Serving(
        listen="127.0.0.1:0",
        joining=Joining(dns="localhost:1", min_workers=1, join_seconds=0.2),
    )
    with open_model("demo") as model, core(model, SETTINGS, form=False) as running:
        with pytest.raises(HearthError, match=r"waited 0\.2 s: see --join-seconds"):
            with serving(running, settings):
                raise AssertionError("it cannot be ready")
        assert not running.engine.busy
