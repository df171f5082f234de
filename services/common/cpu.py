"""Instructions that the CPU must have, checked before a library is imported that needs them."""

from __future__ import annotations

from hearth.common.errors import HearthError, Reason


def check_cpu() -> None:
    """Raises HearthError BAD_SETTING on a CPU on which NumPy would end the process (SIGILL).

    NumPy's wheels are compiled for x86-64-v2, Hearth's own core for any x86-64.
    """
    from hearth import _native

    missing = _native.missing_instructions()
    if missing:
        problem = (
            f"this CPU lacks {_listed(missing)}, which NumPy needs (x86-64-v2: Intel's CPUs since "
            "2008, AMD's since 2011). As a client of a root on another machine it will do: "
            "--root HOST:PORT"
        )
        raise HearthError(Reason.BAD_SETTING, problem)


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
