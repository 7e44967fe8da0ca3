"""Goals and tables of edge_rivals.py: ratios turn by turn, and the figures for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def ratios(rival: Row | None, ours: Row | None, part: str) -> list[float]:
    """Return how many times as long the first takes as the second, one number a round, by the medians of its turns.

    Empty where one of the two is not there, has failed or has no such part.
    """
    if rival is None or ours is None or part not in rival or part not in ours:
        return []
    return [theirs / mine for theirs, mine in zip(rival[part]["turns"], ours[part]["turns"], strict=True)]


def find(rows: Sequence[Row], system: str, variant: str) -> Row | None:
    """Return the row of a contestant, or None where it is not there or has failed."""
    return next((r for r in rows if (r["system"], r["variant"]) == (system, variant) and "failed" not in r), None)


def fastest(rows: Sequence[Row], system: str, endings: Sequence[str]) -> Row | None:
    """Return the row with the least median from file to decision, of those whose variant ends so."""
    found = [r for r in rows if r["system"] == system and "whole_ms" in r and r["variant"].split()[-1] in endings]
    return min(found, key=lambda row: float(row["whole_ms"]["p50"]), default=None)


def summarise(runs: Sequence[Row], accuracy: Sequence[Row]) -> list[Row]:
    """Return the goals at every batch: what is compared with what, the ratio, the bound, and whether it holds.

    `ratio` is the median over rounds, `least` and `most` are the least and the greatest of them: of n rounds, an
    interval of the median with a confidence of 1 - 2^(1 - n), 97 % for six. Goals that ask for speed hold from `bound`
    on, those that limit a cost up to it.
    """
    goals: list[Row] = []
    for method, backbone, batch in dict.fromkeys((row["method"], row["backbone"], row["batch"]) for row in runs):
        key = {"method": method, "backbone": backbone, "batch": batch}
        rows = [r for r in runs if key.items() <= r.items()]

        def add(goal: str, ours: Row | None, values: Sequence[float], bound: float, *, is_cost: bool = False) -> None:
            if not values or ours is None:
                return
            value = statistics.median(values)
            goals.append(
                {
                    **key,  # noqa: B023
                    **{"goal": goal, "ours": ours["variant"], "bound": bound},
                    **{"ratio": value, "least": min(values), "most": max(values)},
                    "holds": value <= bound if is_cost else value >= bound,
                }
            )

        theirs = fastest(rows, "anomalib", ["default"])
        for precision, bound in (("fp32", 1.5), ("bf16", 1.5), ("int8", 2.5)):
            ours = fastest(rows, "flawscope", [precision])
            goal = f"image to decision, {precision}, against anomalib's default"
            add(goal, ours, ratios(theirs, ours, "whole_ms"), bound)
        best = fastest(rows, "flawscope", ["fp32", "bf16", "int8"])
        add("image to decision, best, against anomalib's default", best, ratios(theirs, best, "whole_ms"), 2.5)
        add_costs(add, rows, method)
    return goals + accuracy_goals(accuracy)


def add_costs(add: Any, rows: Sequence[Row], method: str) -> None:
    """Add the goals about backbones and about what comes after them."""
    for backend, precision, bare in (
        ("cpu", "fp32", "onnxruntime fp32"),
        ("openvino", "fp32", "openvino fp32"),
        ("openvino", "bf16", "openvino default"),
        ("openvino", "int8", "openvino int8"),
    ):
        graph = find(rows, "flawscope backbone", f"{backend} {precision}")
        cost = ratios(graph, find(rows, "raw", bare), "model_ms")
        add("backbone over the bare network", graph, cost, 1.05, is_cost=True)
        if backend == "openvino":
            cost = ratios(graph, find(rows, "raw", f"openvino {precision}, our graph"), "model_ms")
            add("backbone over the same graph in bare OpenVINO", graph, cost, 1.05, is_cost=True)
    onnxruntime = find(rows, "raw", "onnxruntime fp32")
    for precision, bound in (("bf16", 1.6), ("int8", 2.5)):
        graph = find(rows, "flawscope backbone", f"openvino {precision}")
        add(f"backbone in {precision}, against ONNX Runtime", graph, ratios(onnxruntime, graph, "model_ms"), bound)
    for whole in (row for row in rows if row["system"] == "flawscope"):
        graph = find(rows, "flawscope backbone", whole["variant"])
        cost = ratios(whole, graph, "model_ms")
        add("inference over its backbone", whole, cost, 1.25 if method == "patchcore" else 1.5, is_cost=True)


def accuracy_goals(accuracy: Sequence[Row]) -> list[Row]:
    """Return the differences of image AUROC to anomalib's better default, with 95 % intervals over the same images."""
    goals = []
    for row in accuracy:
        if "difference" in row:
            change = row["difference"]["image_auroc"]
            key = {"method": row["method"], "backbone": row["backbone"], "batch": 1, "ours": row["variant"]}
            goal = {**key, "goal": f"image AUROC less that of anomalib {row['against']}", "bound": 0.0}
            goals.append({**goal, **change, "holds": change["ratio"] >= 0})
    return goals


def tables(kept: dict[str, list[Row]], goals: Sequence[Row]) -> str:
    """Return all figures as Markdown."""
    lines: list[str] = []

    def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            lines.extend(["", title, "", line_of(heads), line_of(["---"] * len(heads)), *map(line_of, rows)])

    for method, backbone, batch in dict.fromkeys((r["method"], r["backbone"], r["batch"]) for r in kept["runs"]):
        key = {"method": method, "backbone": backbone, "batch": batch}
        table(
            f"{method}, {backbone}, batch {batch}: milliseconds",
            ("", "file to decision, p50", "p99", "model, p50", "p99", "images/s", "calls"),
            [run_cells(row) for row in kept["runs"] if key.items() <= row.items()],
        )
    table(
        "Accuracy on all test images",
        ("", "", "image AUROC", "pixel AUROC"),
        [
            (
                f"{r['method']}, {r['backbone']}",
                name_of(r),
                text(r.get("image_auroc"), 4),
                text(r.get("pixel_auroc"), 4),
            )
            for r in kept["accuracy"]
        ],
    )
    table(
        "Cold start and memory of a fresh process",
        ("", "ready, s", "first decision, s", "USS, MiB", "peak, MiB"),
        [
            (name_of(r), text(r.get("ready_s"), 3), text(r.get("decided_s"), 3), mib(r, "uss_kib"), mib(r, "peak_kib"))
            for r in kept["starts"]
        ],
    )
    table(
        "Goals",
        ("", "ours", "goal", "ratio or difference", "from", "to", "bound", "holds"),
        [
            (
                f"{g['method']}, {g['backbone']}, batch {g['batch']}",
                g["ours"],
                g["goal"],
                *(f"{g[name]:.3f}" for name in ("ratio", "least", "most")),
                g["bound"],
                "yes" if g["holds"] else "no",
            )
            for g in goals
        ],
    )
    return "\n".join(lines[1:])


def run_cells(row: Row) -> list[str]:
    """Return the cells of a contestant."""
    if "failed" in row:
        return [name_of(row), f"failed: {row['failed']}", "", "", "", "", ""]
    whole, model = row.get("whole_ms", {}), row["model_ms"]
    times = [text(part.get(name), 4) for part in (whole, model) for name in ("p50", "p99")]
    return [name_of(row), *times, text(row["images_per_second"], 4), str(row["calls"])]


def name_of(row: Row) -> str:
    """Return the name of a contestant."""
    return f"{row['system']} {row['variant']}"


def text(value: float | None, digits: int) -> str:
    """Return a number with so many digits; nothing for None."""
    return "" if value is None else f"{value:.{digits}g}"


def mib(row: Row, key: str) -> str:
    """Return KiB as MiB."""
    return "" if key not in row else f"{row[key] / 1024:.0f}"


def line_of(cells: Sequence[Any]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
