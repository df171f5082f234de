"""Plots of compare.py; runs in the environment that has matplotlib."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def on(run: dict[str, Any]) -> str:
    """Name what computes."""
    return run.get("device") or f"{run['threads']} threads"


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    runs = [run for run in results["runs"] if run["sequences"] == 1 and run["depth"] == 0]
    figure, axes = plt.subplots(len(runs), 2, figsize=(12, 2.6 * len(runs)), squeeze=False)
    for row, run in zip(axes, runs, strict=True):
        labels = [side["label"] for side in run["sides"]]
        for axis, what in zip(row, ("prefill", "decode"), strict=True):
            values = [side[what] for side in run["sides"]]
            middle = [value[0] for value in values]
            errors = [
                [value[0] - value[1] for value in values],
                [value[2] - value[0] for value in values],
            ]
            colours = ["#999999" if "llama" in label else "#d9622b" for label in labels]
            axis.barh(labels, middle, xerr=errors, color=colours)
            axis.invert_yaxis()
            axis.set_title(f"{run['shape']} {run['weights']}: {what}, tokens/s", fontsize=10)
            axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(folder / "speed.png", dpi=110)
    figure, axes = plt.subplots(1, len(runs), figsize=(5 * len(runs), 4), squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        for side in run["sides"]:
            style = "--" if "llama" in side["label"] else "-"
            axis.plot(range(1, len(side["curve"]) + 1), side["curve"], style, label=side["label"])
        axis.set_title(f"{run['shape']} {run['weights']}, {on(run)}", fontsize=10)
        axis.set_xlabel("tokens generated")
        axis.set_ylabel("seconds since the prompt")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "curve.png", dpi=110)


if __name__ == "__main__":
    main()
