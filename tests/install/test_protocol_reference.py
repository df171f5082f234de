"""The reference of hearth.v1 in the documentation is complete, and its links have targets."""

import importlib.util
import re
from pathlib import Path

import pytest

from hearth.v1 import common_pb2, root_pb2, worker_pb2

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> str:
    spec = importlib.util.spec_from_file_location("page", TOP / "packaging/docs/protocol.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.reference(TOP / "protos"))


def test_every_type_and_method_is_there(page: str) -> None:
    headings = set(re.findall(r"^### (.+)$", page, re.MULTILINE))
    for module in (common_pb2, root_pb2, worker_pb2):
        file = module.DESCRIPTOR
        assert {*file.message_types_by_name, *file.enum_types_by_name} <= headings
        for service in file.services_by_name.values():
            assert service.name in headings
            for method in service.methods:
                assert f"| `{method.name}` |" in page


def test_fields_show_number_type_and_comment(page: str) -> None:
    row = re.search(r"^\| `prompt` \| 1 \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert row
    assert row[1] == "`string` (one of `input`)"
    assert "Tokenized by the root" in row[2]


def test_links_have_targets(page: str) -> None:
    anchors = {
        re.sub(r"[^\w -]", "", heading).lower()
        for heading in re.findall(r"^### (.+)$", page, re.MULTILINE)
    }
    links = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert links
    assert links <= anchors
