"""Schemathesis with OpenAI's own document: no error of the server, no answer of another shape.

`make clients` installs Schemathesis. Any model's name is served, because the document's examples
name OpenAI's. The context is short: a scripted model that is held to a schema writes on until
its end.
"""

import os
import subprocess
from pathlib import Path

import pytest
from installed_clients import INSTALLED, says
from serving_fakes import TOOL_TEMPLATE, FakeRunner, Root

HERE = Path(__file__).parent
SCHEMATHESIS = INSTALLED / "venv" / "bin" / "st"

pytestmark = pytest.mark.skipif(
    not SCHEMATHESIS.exists(), reason="`make clients` installs Schemathesis"
)

PATHS = (
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/models",
    "/models/{model}",
    "/responses",
)
CHECKS = (
    "not_a_server_error",
    "response_schema_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "every_event_fits",
)
# Left out, with the reasons:
# - status_code_conformance: the document has 200 and 429 only. OpenAI's service sends 400, 401
#   and 404 as Hearth does.
# - negative_data_rejection: clients send fields that no server but theirs knows, so unknown ones
#   are ignored and null counts as absent.
# - positive_data_acceptance: images, sound and tools that run at OpenAI are refused with 400.
# - unsupported_method: DELETE /models/{model} and GET /chat/completions are 405 without Allow.
# - ignored_auth: this root has no keys; tests/faces/test_port.py has them.
# - the stateful phase: the document has no links between these paths.


def test_the_document_of_openai(testdata: Path, tmp_path: Path) -> None:
    document = testdata / "openai/openapi.yaml"
    with Root(
        FakeRunner(says),
        http=True,
        any_model=True,
        chat_template=TOOL_TEMPLATE,
        context_size=1024,
        max_pages=8192,
    ) as root:
        words = [str(SCHEMATHESIS), "run", str(document), "--url", f"{root.url}/v1"]
        words += [word for path in PATHS for word in ("--include-path", path)]
        words += ["--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS)]
        words += ["--max-examples", "50", "--max-time", "60", "--generation-deterministic"]
        words += ["--request-timeout", "60", "--continue-on-failure", "--no-color"]
        words += ["--suppress-health-check", "all"]
        hooks = {"SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(HERE)}
        ran = subprocess.run(
            words,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | hooks,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
