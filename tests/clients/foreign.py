"""Test suites of other projects against a root: OpenAI's Python library, llama.cpp's server.

    python tests/clients/foreign.py openai --checkout DIR
    python tests/clients/foreign.py llama.cpp --checkout DIR --model stories260K.gguf

DIR has the project's sources, such as those of a source distribution; nothing of them is kept
here. The suites run in build/clients/suites, which this makes. Tests that ask for more than Hearth
promises are left out, each with its reason below. The exit status is that of pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import ServiceProcess, free_port, hearth
from installed_clients import INSTALLED, says
from serving_fakes import FakeRunner, Root

SUITES = INSTALLED / "suites"
PYTHON = SUITES / "bin" / "python"
PACKAGES = (
    *("pytest", "pytest-asyncio", "pytest-xdist", "openai", "requests", "respx", "rich"),
    *("inline-snapshot", "filelock", "wget", "httpx-aiohttp", "numpy"),
)
# Left out: a regular expression of tests' names -> the reason.
OPENAI = {
    r"Async": "the same requests once more",
    r"chat/test_completions.*(list|retrieve|update|delete)": "chats are not stored",
    r"test_models.*delete": "models are files on the root's machine",
    r"test_responses.*(retrieve|delete|cancel)": "responses are not stored, nor in the background",
    r"test_responses.*compact": "OpenAI's own form of a shortened conversation",
    r"(responses|input_tokens).*with_all_params": "names a stored response and conversation",
    r"resources/test_completions.*with_all_params": "the model has no tokens for a suffix",
    r"test_embeddings.*create.strict": "the strict client refuses the base64 that it asks for",
}
OPENAI_FILES = (
    "chat/test_completions.py",
    "test_completions.py",
    "test_embeddings.py",
    "test_models.py",
    "test_responses.py",
    "responses/test_input_tokens.py",
)
_SAMPLED = "the text is that of llama.cpp's own sampler and random numbers"
_SERVER = "starts llama.cpp's server with options of its own, or another model"
_VERBOSE = "reads __verbose or generation_settings, the debugging of llama.cpp's server"
_PROGRESS = "progress is sent four times a second at most, not after each of n_batch tokens"
_FIRST = "the first event is sent before the prompt is read, without text or tokens"
LLAMA_CPP = {
    r"multiple_addresses|server_(models|model_aliases|props|slots)|split_model|no_ui": _SERVER,
    r"apply_chat_template|pooling_none|multimodal_model|thinking_": _SERVER,
    r"embedding_usage|embedding_error|library_stops|telemetry": _SERVER,
    r"test_chat_completion\[|test_completion\[|completion_with_openai_library": _SAMPLED,
    r"responses_with_openai|stream_vs_non_stream|stream_with_openai_library": _SAMPLED,
    r"test_completion_stream\[|test_completion_prompt_cache|response_fields": _VERBOSE,
    r"test_chat_template|verbose": _VERBOSE,
    r"completion_with_tokens_input": _VERBOSE,
    r"completion_stream\[|timings_per_token|logprobs_stream|n_probs_stream": _FIRST,
    r"return_progress.64-4": _PROGRESS,
    r"n_probs_post": "log probabilities are those before sampling",
    r"context_size_exceeded": "the error's type is that of OpenAI",
    r"cached_tokens": "the prefix cache shares whole pages",
    r"invalid_chat_completion_req.messages7": "neighbours of one role are joined, as agents need",
    r"empty_messages": "Anthropic's own service refuses them, too",
    r"image|vision": "images are refused with 400 before anything runs, not with 500",
}
LLAMA_CPP_FILES = (
    "test_basic.py",
    "test_chat_completion.py",
    "test_compat_anthropic.py",
    "test_compat_oai_responses.py",
    "test_completion.py",
    "test_embedding.py",
    "test_tokenize.py",
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Longer than stories260k's own: llama.cpp's tests set it so.
CONTEXT = 512


def run(
    folder: Path, files: Sequence[str], left_out: Mapping[str, str], environ: Mapping[str, str]
) -> int:
    """Runs the tests of these files, but for those left out; pytest's exit status."""
    pytest = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0"]
    env = os.environ | environ
    listed = subprocess.run(
        [*pytest, "--collect-only", *files],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    names = [line for line in listed.stdout.splitlines() if "::" in line]
    if listed.returncode or not names:
        sys.exit(f"no tests were found in {folder}: {listed.stdout[-2000:]}")
    wanted: list[str] = []
    reasons = Counter[str]()
    for name in names:
        why = next((why for rule, why in left_out.items() if re.search(rule, name)), None)
        if why is None:
            wanted.append(name)
        else:
            reasons[why] += 1
    for why, count in reasons.most_common():
        print(f"{count} left out: {why}", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as chosen:
        chosen.write("\n".join(wanted))
        chosen.flush()
        done = subprocess.run([*pytest, f"@{chosen.name}"], cwd=folder, env=env, check=False)
    return done.returncode


def openai(checkout: Path) -> int:
    """The suite of OpenAI's library against a root with a scripted model."""
    options: dict[str, Any] = {"context_size": 4096, "max_pages": 4096}
    with Root(FakeRunner(says), http=True, any_model=True, **options) as root:
        environ = {"PYTHONPATH": "src", "TEST_API_BASE_URL": f"{root.url}/v1"}
        files = [f"tests/api_resources/{name}" for name in OPENAI_FILES]
        return run(checkout, files, OPENAI, environ)


def llama_cpp(checkout: Path, model: Path) -> int:
    """The suite of llama.cpp's server against `hearth root` with stories260k."""
    port = free_port()
    with tempfile.TemporaryDirectory() as made:
        template, folder = Path(made) / "model.gguf", Path(made) / "tiny"
        new = ["gguf-new-metadata", "--force", "--chat-template", TEMPLATE, str(model)]
        tool = Path(sys.executable).with_name(new[0])
        subprocess.run([str(tool), *new[1:], str(template)], check=True, capture_output=True)
        converted = hearth("convert", "--weights", "f32", str(template), str(folder))
        if converted.returncode:
            sys.exit(converted.stderr)
        config = json.loads((folder / "config.json").read_text())
        config["hearth"]["spec"]["context_size"] = CONTEXT
        (folder / "config.json").write_text(json.dumps(config))
        root = ServiceProcess(
            *("root", "--model", str(folder), "--context", str(CONTEXT), "--any-model"),
            *("--listen", "127.0.0.1:0", "--http", f"127.0.0.1:{port}"),
            log=Path(made) / "root.log",
        )
        try:
            environ = {"DEBUG_EXTERNAL": "1", "PORT": str(port)}
            files = [f"unit/{name}" for name in LLAMA_CPP_FILES]
            return run(checkout / "tools" / "server" / "tests", files, LLAMA_CPP, environ)
        finally:
            root.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=["openai", "llama.cpp"])
    parser.add_argument("--checkout", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, help="stories260K.gguf, for llama.cpp")
    options = parser.parse_args()
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(SUITES)], check=True)
        subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    if options.suite == "openai":
        return openai(options.checkout)
    if options.model is None:
        parser.error("llama.cpp's tests need --model stories260K.gguf")
    return llama_cpp(options.checkout, options.model)


if __name__ == "__main__":
    sys.exit(main())
