"""Charts of `hearth bench --plot`: a run for 1, 2, 4 ... sequences up to --sequences."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hearth.cli.plot import Chart, Series, svg
from hearth.common.errors import HearthError, Reason

if TYPE_CHECKING:
    from hearth.cli.bench import Recorder
    from hearth.cli.session import Session
    from hearth.cli.workload import Workload


def check_plot(path: str) -> None:
    """Raises HearthError BAD_SETTING for a file that cannot be written, before anything runs."""
    try:
        with Path(path).open("a"):
            pass
    except OSError as error:
        problem = f"--plot {path}: {error.strerror or error}"
        raise HearthError(Reason.BAD_SETTING, problem) from None


def plot(path: str, title: str, session: Session, recorder: Recorder, workload: Workload) -> None:
    """Runs, and writes the charts to `path` as SVG. Raises HearthError if a request fails."""
    Path(path).write_text(svg(_charts(title, session, recorder, workload)))


def _charts(title: str, session: Session, recorder: Recorder, workload: Workload) -> list[Chart]:
    from hearth.cli.workload import Runs

    curves: list[Series] = []
    speeds: list[tuple[float, float]] = []
    compute: list[tuple[float, float]] = []
    transfer: list[tuple[float, float]] = []
    for count in _counts(workload.sequences):
        runs = Runs(session, replace(workload, sequences=count))
        recorder.begin(count)
        rates = runs.run(0)
        curves.append(Series(f"{count} together", list(enumerate(rates.token_seconds, 1))))
        speeds.append((count, rates.decode))
        steps = recorder.decode
        if steps:
            times = [step.compute_seconds * 1e3 for step in steps]
            rest = [(step.wall_seconds - step.compute_seconds) * 1e3 for step in steps]
            compute.append((count, statistics.median(times)))
            transfer.append((count, statistics.median(rest)))
    return [
        Chart(f"{title}: time", "tokens of a sequence", "seconds since the prompt", curves),
        Chart("Speed", "sequences", "tokens/s of all", [Series("decode", speeds)]),
        Chart(
            "A step",
            "sequences",
            "ms",
            [Series("compute (I)", compute), Series("sync, transport (T)", transfer)],
        ),
    ]


def _counts(most: int) -> list[int]:
    """1, 2, 4 and so on, and `most`."""
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]
