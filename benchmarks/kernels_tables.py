"""Print the result of the kernel benchmark as tables."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

NOT_A_TERMINAL_COLUMNS = 190
BUSY_ELSEWHERE = 0.05


def shown(value: float | None, digits: int = 3) -> str:
    """Return a number for a cell, and a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".rstrip(".")


def case(text: str, row: dict[str, Any]) -> str:
    """Return the first cell of a row, marked where other processes disturbed it."""
    return f"{text} (!)" if (row["share_of_cores_elsewhere"] or 0) > BUSY_ELSEWHERE else text


def milliseconds(timing: dict[str, Any] | None) -> str:
    """Return median ± half the interquartile range."""
    if timing is None:
        return "–"
    return f"{shown(1e3 * timing['median_s'])} ±{shown(500 * timing['iqr_s'], 2)}"


def verdict(met: bool | None) -> str:
    """Return whether a target is met, in colour where the terminal has it."""
    return "–" if met is None else "[green]yes[/]" if met else "[red]no[/]"


def table(title: str, *columns: str) -> Table:
    """Return an empty table whose columns but the first are numbers."""
    empty = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        empty.add_column(column, justify="right" if index else "left", no_wrap=True)
    return empty


def unproved(row: dict[str, Any], bank: str) -> str:
    """Return the share of queries that the screen of a bank left to the float32 search."""
    share = row["unproved_share"][bank]
    return "–" if share < 0 else f"{share:.1%}"


def nearest_tables(part: dict[str, Any]) -> list[Table]:
    """Return the tables of shapes and of storages."""
    rivals = ("rows", "unscreened", "independent", "faiss", "torch", "torch_kept", "cdist")
    shapes = table(
        "nearest: ms, and how many times longer the others take (sgemm: our share of its rate)",
        "N × M × D, k",
        "bank ms",
        "GFLOP/s",
        *rivals,
        "sgemm",
        "sgemm GFLOP/s",
        "unproved",
        "of independent",
    )
    for row in part["rows"]:
        ours = row["contestants"]["bank"]
        shapes.add_row(
            case(f"{row['N']} × {row['M']} × {row['D']}, {row['k']}", row),
            milliseconds(ours),
            shown(ours["gflops"]),
            *(shown(row["ratios"].get(rival)) for rival in rivals),
            shown(row["ratios"]["sgemm"]),
            shown(row["contestants"][row["sgemm"]]["gflops"]),
            *(unproved(row, bank) for bank in ("bank", "independent")),
        )
    storages = table(
        "nearest: storages of the bank, k = 1",
        "N × M × D, storage",
        "re-ranked",
        "ms",
        "times float32",
        "error bound",
        "recall",
        "largest excess",
        "median distance",
    )
    for row in part["storages"]:
        storages.add_row(
            f"{row['N']} × {row['M']} × {row['D']}, {row['storage']}",
            str(row["rerank"] or "–"),
            milliseconds(row["timing"]),
            shown(row["ratio_to_float32"]),
            shown(row["error_bound"]),
            f"{row['recall']:.4f}",
            f"{row['largest_excess']:.2g}",
            shown(row["median_distance"]),
        )
    return [shapes, storages]


def window_tables(part: dict[str, Any]) -> list[Table]:
    """Return the table of cases."""
    cases = table(
        "window: ms, how many times longer the whole bank takes, and how many times fewer distances count",
        "grid, M × D, batch",
        "ours ms",
        "whole",
        "unscreened",
        "fewer distances",
        "fewer products",
    )
    for row in part["rows"]:
        cases.add_row(
            case(f"{row['grid'][0]} × {row['grid'][1]}, {row['M']} × {row['D']}, {row['batch']}", row),
            milliseconds(row["contestants"]["window"]),
            *(shown(row["ratios"][name]) for name in ("whole", "unscreened")),
            shown(row["fewer_distances"]),
            shown(row["fewer_products"]),
        )
    return [cases]


def kcenter_tables(part: dict[str, Any]) -> list[Table]:
    """Return the tables of the comparison and of time against n."""
    rivals = ("anomalib_shipped", "anomalib_unprojected", "numpy", "torch")
    compared = table(
        "kcenter_greedy: ms, and how many times longer the others take",
        "N × D, centres, data",
        "ours ms",
        *rivals,
        "computed",
        "same rows: numpy",
        "torch",
    )
    for row in part["rows"]:
        compared.add_row(
            case(f"{row['N']} × {row['D']}, {row['count']}, {row['data']}", row),
            milliseconds(row["contestants"]["flawscope"]),
            *(shown(row["ratios"].get(rival)) for rival in rivals),
            f"{row['share_computed']:.1%}",
            f"{row['same_rows']['numpy']:.1%}",
            f"{row['same_rows']['torch']:.1%}",
        )
    growth = table(
        "kcenter_greedy: time against n; computed: share of the N × centres distances",
        "N × D, centres, data",
        "s",
        "runs",
        "computed",
        "GFLOP/s of these",
    )
    for row in part["growth"]:
        growth.add_row(
            case(f"{row['N']} × {row['D']}, {row['count']}, {row['data']}", row),
            shown(row["timing"]["median_s"]),
            str(row["timing"]["rounds"]),
            f"{row['share_computed']:.1%}",
            shown(row["computed_gflops"]),
        )
    return [compared, growth]


def mahalanobis_tables(part: dict[str, Any]) -> list[Table]:
    """Return the table of shapes."""
    rivals = ("torch_bmm", "torch_einsum", "numpy")
    shapes = table(
        "mahalanobis: share of the copy bandwidth, [P, D, D] and bytes read; of the read bandwidth; times longer",
        "P × D, batch, factors",
        "ours ms",
        "GB/s",
        "copy GB/s",
        "share",
        "share, read",
        "of reading",
        "GFLOP/s",
        *rivals,
    )
    for row in part["rows"]:
        ours = row["contestants"]["flawscope"]
        shapes.add_row(
            case(f"{row['P']} × {row['D']}, {row['batch']}, {row['factor']}", row),
            milliseconds(ours),
            shown(ours["gbytes_per_s"]),
            shown(row["contestants"][row["copy"]]["gbytes_per_s"]),
            f"{row['share_of_copy']:.0%}",
            f"{row['share_of_copy_bytes_read']:.0%}",
            f"{row['share_of_read_bytes_read']:.0%}",
            shown(row["gflops"]),
            *(shown(row["ratios"][rival]) for rival in rivals),
        )
    return [shapes]


def memory_tables(part: dict[str, Any]) -> list[Table]:
    """Return the table of cases."""
    cases = table(
        "nearest: growth of the peak memory over inputs and outputs",
        "N × M × D, k, bank given as",
        "MB",
        "inputs MB",
        "bank MB",
        "outputs MB",
    )
    for row in part["rows"]:
        cases.add_row(
            f"{row['N']} × {row['M']} × {row['D']}, {row['k']}, {row['kind']}",
            *(shown(row[name]) for name in ("growth_mb", "inputs_mb", "bank_mb", "outputs_mb")),
        )
    return [cases]


def target_table(targets: list[dict[str, Any]]) -> Table:
    """Return the table of targets and the figures that were reached."""
    summary = table("Targets", "", "asked", "worst", "geometric mean", "cases met", "met", "worst case")
    for row in targets:
        required = row["required"]
        sign = "≤ " if row["unit"] == "MB" else "≥ "
        unit = f" {row['unit']}" if row["unit"] else ""
        summary.add_row(
            row["claim"],
            "–" if required is None else f"{sign}{required:g}{unit}",
            shown(row["worst"]) + unit,
            shown(row["geometric_mean"]),
            f"{row['cases'] if row['cases_met'] is None else row['cases_met']} of {row['cases']}",
            verdict(row["met"]),
            row["worst_case"],
        )
    return summary


TABLES = {
    "nearest": nearest_tables,
    "window": window_tables,
    "kcenter": kcenter_tables,
    "mahalanobis": mahalanobis_tables,
    "memory": memory_tables,
}


def print_tables(document: dict[str, Any]) -> None:
    """Print every part of a result that is there, and the targets last."""
    # Into a file or a pipe rich would fold the columns to 80 characters.
    console = Console(width=None if sys.stdout.isatty() else NOT_A_TERMINAL_COLUMNS)
    for part, tables_of in TABLES.items():
        if part not in document:
            continue
        for filled in tables_of(document[part]):
            console.print(filled, "")
        elsewhere = document[part]["conditions"]["share_of_cores_elsewhere"]
        if elsewhere is not None and elsewhere > BUSY_ELSEWHERE:
            console.print(
                f"{part}: other processes used {elsewhere:.0%} of the cores, which slows some contestants "
                f"more than others: measure again. Cases with more than {BUSY_ELSEWHERE:.0%} are marked (!).\n"
            )
    console.print(target_table(document["targets"]))
