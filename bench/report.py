"""The table of compare.py, as Markdown."""

from pathlib import Path
from typing import Any


def write_markdown(results: dict[str, Any], path: Path) -> None:
    """Write the page: the machine, a table for each model and thread count, the plots."""
    machine = results["machine"]
    lines = [
        "# Benchmarks",
        "",
        "Written by `bench/compare.py`; do not edit. Every round runs each side once, in turn, on",
        "the same GGUF file with random weights of the shape named; figures are medians with the",
        "lowest and highest of all rounds, after a warm-up. Rates are of all sequences together.",
        "The share of memory counts the weights that a decode step of one sequence reads, against",
        "reading memory with as many threads, same run. Sync is the part of a step beyond the",
        "root's computing: lane, waiting, Python.",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}; "
        f"Hearth's kernels: {machine['kernels']}. llama.cpp is built for all that this CPU has. "
        "KV cache in f16 on all sides.",
        "",
        *summary(results["runs"]),
    ]
    for run in results["runs"]:
        lines += table(run)
    lines += [
        "![tokens per second](benchmarks/speed.png)",
        "",
        "![time against tokens generated](benchmarks/curve.png)",
        "",
    ]
    path.write_text("\n".join(lines))


def summary(runs: list[dict[str, Any]]) -> list[str]:
    """The ratios of Hearth with the same threads to llama.cpp, a row for each measurement."""
    lines = [
        "## Against llama.cpp",
        "",
        "Hearth's rate through llama.cpp's, on one node with the same threads.",
        "",
        "| shape | weights | threads or GPU | sequences | depth | prompt | prefill | decode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        base = run["sides"][0]
        same = f"Hearth, {run['threads']} threads"
        if run.get("device"):
            same = run["sides"][-1]["label"]
        ours = next((side for side in run["sides"] if side["label"] == same), None)
        if ours is None or ours is base:
            continue
        sizes = (
            run.get("device") or run["threads"],
            run["sequences"],
            run["depth"],
            run["prompt_tokens"],
        )
        lines.append(
            f"| {run['shape']} | {run['weights']} | {' | '.join(map(str, sizes))} | "
            f"{ratio(ours, base, 'prefill')} | {ratio(ours, base, 'decode')} |"
        )
    return [*lines, ""]


def table(run: dict[str, Any]) -> list[str]:
    """One model with one number of threads."""
    where = f"on {run['device']}" if run.get("device") else f"{run['threads']} threads in all"
    memory = run["memory_gb_per_second"]
    given = "gives, by its data sheet," if run.get("device") else "is read at"
    lines = [
        f"## {run['shape']}, {run['weights']}, {where}{together(run)}",
        "",
        f"Prefill of {run['prompt_tokens']} tokens, then decode of {run['new_tokens']}; "
        f"{run['rounds']} rounds." + (f" Memory {given} {memory:.1f} GB/s." if memory else ""),
        "",
        "| side | prefill tokens/s | against llama.cpp | decode tokens/s | against llama.cpp | "
        "of memory | sync ms/token |",
        "|---|---|---|---|---|---|---|",
    ]
    base = run["sides"][0]
    for side in run["sides"]:
        sync = f"{side['sync_ms']:.2f}" if "sync_ms" in side else ""
        lines.append(
            f"| {side['label']} | {spread(side['prefill'])} | {ratio(side, base, 'prefill')} | "
            f"{spread(side['decode'])} | {ratio(side, base, 'decode')} | {share(side, run)} | "
            f"{sync} |"
        )
    return [*lines, ""]


def together(run: dict[str, Any]) -> str:
    """ ", 4 sequences, depth 4096", of what differs from one sequence without a depth."""
    parts = [f", {run['sequences']} sequences"] if run["sequences"] > 1 else []
    parts += [f", depth {run['depth']}"] if run["depth"] else []
    parts += [", over two nodes"] if run.get("rpc") else []
    return "".join(parts)


def spread(values: list[float]) -> str:
    """ "39.9 (38.1 to 40.2)"."""
    middle, low, high = values
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def share(side: dict[str, Any], run: dict[str, Any]) -> str:
    """ "85 %": weights read in a second of decode, of what memory gives; "" if nobody knows."""
    if not run["memory_gb_per_second"]:
        return ""
    read = side["decode"][0] / run["sequences"] * run["bytes_per_token"] * 1e-9
    return f"{100 * read / run['memory_gb_per_second']:.0f} %"


def ratio(side: dict[str, Any], base: dict[str, Any], what: str) -> str:
    """ "2.31x"; "" where llama.cpp was not run."""
    if not base["label"].startswith("llama.cpp"):
        return ""
    return f"{side[what][0] / base[what][0]:.2f}x"
