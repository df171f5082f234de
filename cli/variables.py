"""Environment variables that look like Hearth's and set nothing: most are misspelled."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from hearth.common.settings import PREFIX
from hearth.common.spelling import nearest

# Read elsewhere than for options: by the services and the core, and by Hearth's own tests.
_OTHERS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "ANY_KEY_MODE", "CONFIG", "EXPECTED_INSTRUCTION_SETS", "GUARD_BUFFERS", "INSTRUCTION_SET",
        "LOG_LEVEL", "CHROMIUM", "CLIENTS", "CONTAINER_ENGINE", "DEPLOY_IMAGE", "DEPLOY_TEST",
        "KILLS", "TESTDATA",
    )
)  # fmt: skip
# Of deploy/compose, for the file alone.
_COMPOSE = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "HTTP_PORT", "IMAGE", "METRICS_PORT", "PORT", "ROOT_CPUS", "ROOT_MEMORY", "WORKER_CPUS",
        "WORKER_MEMORY",
    )
)  # fmt: skip
# Kubernetes sets these for a service whose name begins with "hearth".
_KUBERNETES = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP)(_(ADDR|PORT|PROTO))?)?$"
)


def suspects(environ: Mapping[str, str], known: Collection[str]) -> list[str]:
    """Names that begin with HEARTH_ and are none of `known`, nor set by other programs."""
    others = {*known, *_OTHERS, *_COMPOSE}
    return sorted(
        name
        for name in environ
        if name.startswith(PREFIX) and name not in others and not _KUBERNETES.search(name)
    )


def complaint(name: str, known: Collection[str]) -> str:
    """One line about a variable that sets nothing."""
    return (
        f"{name} is not the variable of an option, and has no effect"
        f"{nearest(name, {*known, *_OTHERS}, prefix=PREFIX)}"
    )
