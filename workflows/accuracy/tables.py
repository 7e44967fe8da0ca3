"""Tables of a benchmark: a row for each category, a column for each method; and their JSON."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from flawscope.calibration.evaluation.intervals import Interval
from flawscope.versions import cpu_name
from flawscope.workflows.accuracy.cells import FIGURES, CellResult

SCHEMA = 1
"""Version of the JSON file."""


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of one method over the categories of a dataset.

    Attributes:
        dataset: Name of the dataset.
        method: Name of the method.
        figure: Key of the figure.
        value: Mean over the categories, of each the mean over its seeds.
        interval: 95 % interval of that mean for other test images of the same categories; None where a category has
            none. Test images of different categories are independent, so variances add.
        seeds_sd: Standard deviation over seeds of the mean over categories; None with one seed.
        categories: Categories with the figure.
        missing: Categories without it: they failed, are not measured yet, or have no masks.
    """

    dataset: str
    method: str
    figure: str
    value: float
    interval: Interval | None
    seeds_sd: float | None
    categories: int
    missing: int


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """What `benchmark.json` holds.

    Attributes:
        command: Command line.
        when: UTC time when it was written.
        machine: Processor, cores and system.
        cells: Every cell that has run, failures included.
        means: Figures over categories.
        planned: Number of cells that were asked for.
        schema: Version of this file.
    """

    command: str
    when: str
    machine: dict[str, str | int | None]
    cells: tuple[CellResult, ...]
    means: tuple[Mean, ...]
    planned: int
    schema: int = SCHEMA


def machine_facts(cores: int | None) -> dict[str, str | int | None]:
    """Return what a table says of the machine."""
    return {"cpu": cpu_name(), "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def means_of(results: Sequence[CellResult]) -> tuple[Mean, ...]:
    """Return the figures of every dataset and method over its categories."""
    means = []
    for dataset, method in dict.fromkeys((result.dataset, result.method) for result in results):
        here = [result for result in results if (result.dataset, result.method) == (dataset, method)]
        whole = {result.category for result in results if result.dataset == dataset}
        means += [mean for key in FIGURES if (mean := _mean(dataset, method, key, here, len(whole))) is not None]
    return tuple(means)


def _mean(dataset: str, method: str, key: str, results: Sequence[CellResult], whole: int) -> Mean | None:
    groups = _by_category(results, key)
    if not groups:
        return None
    seeds = {cell.seed for cells in groups.values() for cell in cells}
    # Over seeds only where every category has all of them: else the means would be of different categories.
    is_full = all({cell.seed for cell in cells} == seeds for cells in groups.values())
    of_seeds = [
        statistics.fmean(_value(cell, key) for cells in groups.values() for cell in cells if cell.seed == seed)
        for seed in sorted(seeds)
    ]
    value = statistics.fmean(statistics.fmean(_value(cell, key) for cell in cells) for cells in groups.values())
    return Mean(
        dataset=dataset,
        method=method,
        figure=key,
        value=value,
        interval=_interval(value, key, groups.values()),
        seeds_sd=statistics.stdev(of_seeds) if is_full and len(seeds) > 1 else None,
        categories=len(groups),
        missing=whole - len(groups),
    )


def _interval(value: float, key: str, groups: Iterable[Sequence[CellResult]]) -> Interval | None:
    """Return the interval of a mean over categories, from the widths of theirs.

    All seeds of a category are measured on the same test images: their intervals are averaged, not narrowed.
    """
    low = high = 0.0
    count, confidence = 0, 0.95
    for cells in groups:
        if any(key not in cell.intervals for cell in cells):
            return None
        confidence = cells[0].intervals[key].confidence
        low += statistics.fmean(_value(cell, key) - cell.intervals[key].low for cell in cells) ** 2
        high += statistics.fmean(cell.intervals[key].high - _value(cell, key) for cell in cells) ** 2
        count += 1
    return Interval(max(0.0, value - math.sqrt(low) / count), min(1.0, value + math.sqrt(high) / count), confidence)


def _value(cell: CellResult, key: str) -> float:
    value = cell.figures[key]
    assert value is not None  # only cells with the figure are grouped
    return value


def _by_category(results: Iterable[CellResult], key: str) -> dict[str, list[CellResult]]:
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        if result.figures.get(key) is not None:
            groups.setdefault(result.category, []).append(result)
    return groups


# ---- Markdown --------------------------------------------------------------------------------------------------------


def to_markdown(benchmark: Benchmark) -> str:
    """Return the tables as Markdown."""
    facts = benchmark.machine
    lines = [
        "# Accuracy",
        "",
        f"`{benchmark.command}`",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {benchmark.when}. Values are followed by the 95 % interval for other "
        "test images, of several seeds by ± their standard deviation. Thresholds play no part in them.",
    ]
    if (left := benchmark.planned - len(benchmark.cells)) > 0:
        lines += ["", f"**Not finished**: {left} of {benchmark.planned} cells are not measured yet."]
    for dataset in dict.fromkeys(result.dataset for result in benchmark.cells):
        results = [result for result in benchmark.cells if result.dataset == dataset]
        means = {(mean.method, mean.figure): mean for mean in benchmark.means if mean.dataset == dataset}
        lines += ["", f"## {_cell(dataset)}"]
        for key, title in FIGURES.items():
            if any(mean_key == key for _, mean_key in means):
                lines += ["", *_figure_table(key, title, results, means)]
        lines += ["", *_cost_table(results)]
        failures = [result for result in results if result.error is not None]
        if failures:
            lines += ["", "Failed:", ""]
            lines += [
                f"- {_cell(result.category)} {result.method} seed {result.seed}: {_cell(str(result.error))}"
                for result in failures
            ]
    return "\n".join([*lines, ""])


def _figure_table(
    key: str, title: str, results: Sequence[CellResult], means: Mapping[tuple[str, str], Mean]
) -> list[str]:
    methods = list(dict.fromkeys(result.method for result in results))
    rows = [f"| {title} | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
    categories = list(dict.fromkeys(result.category for result in results))
    for category in categories:
        here = {method: [r for r in results if (r.category, r.method) == (category, method)] for method in methods}
        rows.append(f"| {_cell(category)} | {' | '.join(_entry(key, here[method]) for method in methods)} |")
    if len(categories) > 1:
        rows.append(f"| **mean** | {' | '.join(_mean_entry(means.get((method, key))) for method in methods)} |")
    return rows


def _entry(key: str, cells: Sequence[CellResult]) -> str:
    done = [cell for cell in cells if cell.figures.get(key) is not None]
    if not done:
        return "failed" if any(cell.error is not None for cell in cells) else "-"
    values = [_value(cell, key) for cell in done]
    text = f"{statistics.fmean(values):.3f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.3f}"
    interval = done[0].intervals.get(key)
    return text if interval is None or len(values) > 1 else f"{text} ({interval.low:.3f} to {interval.high:.3f})"


def _mean_entry(mean: Mean | None) -> str:
    if mean is None:
        return "-"
    text = f"**{mean.value:.3f}**"
    if mean.seeds_sd is not None:
        text += f" ± {mean.seeds_sd:.3f}"
    if mean.interval is not None:
        text += f" ({mean.interval.low:.3f} to {mean.interval.high:.3f})"
    # A mean over fewer categories than another's is not to be compared with it.
    return text + (f", without {mean.missing}" if mean.missing else "")


def _cost_table(results: Sequence[CellResult]) -> list[str]:
    rows = ["| method | seconds a category | ms an image, p50 | peak memory, MB | faults |", "|---|---|---|---|---|"]
    for method in dict.fromkeys(result.method for result in results):
        done = [result for result in results if result.method == method and result.error is None]
        if not done:
            rows.append(f"| {method} | - | - | - | - |")
            continue
        times = [result.latency_ms for result in done if result.latency_ms is not None]
        latency = f"{statistics.median(times):.1f}" if times else "-"
        seconds = statistics.fmean(result.seconds for result in done)
        peak, faults = max(result.peak_mb for result in done), sum(result.faults for result in done)
        rows.append(f"| {method} | {seconds:.0f} | {latency} | {peak:.0f} | {faults} |")
    return rows


def _cell(text: str) -> str:
    """Return text that does not end a cell or a line of a table."""
    return " ".join(text.split()).replace("|", "\\|")
