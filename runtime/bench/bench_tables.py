"""The figures of `bench` as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from flawscope.runtime.bench.rounds import STAGES, configuration_name
from flawscope.runtime.bench.settings_search import arguments_text, options_text


def stage_table(figures: Mapping[str, Any]) -> Table:
    """Return the percentiles per stage of one batch."""
    table = Table(
        title=f"{figures['bundle']} on {figures['backend']}, batch {figures['batch']}, {figures['rounds']} rounds"
    )
    table.add_column("stage")
    for name in ("p50", "p90", "p99", "p99.9"):
        table.add_column(f"{name} ms", justify="right")
    for stage in STAGES:
        table.add_row(stage, *_times(figures["latency_ms"][stage]))
        if stage == "infer":
            for part, times in (figures["infer_parts_ms"] or {}).items():
                table.add_row(f"  {part}", *_times(times))
    if figures["backbone_ms"] is not None:
        table.add_section()
        table.add_row("backbone alone", *_times(figures["backbone_ms"]))
    return table


def sweep_table(figures: Mapping[str, Any]) -> Table:
    """Return one row for each batch: inference and total, throughput, ratio, peak memory."""
    table = _table(f"{figures['bundle']} on {figures['backend']}, milliseconds per batch", "batch")
    for name in ("infer p50", "total p50", "total p99", "images/s", "infer / backbone", "peak MiB"):
        table.add_column(name, justify="right")
    for row in figures["sweep"]:
        latency = row["latency_ms"]
        table.add_row(
            str(row["batch"]),
            f"{latency['infer']['p50']:.2f}",
            f"{latency['total']['p50']:.2f}",
            f"{latency['total']['p99']:.2f}",
            f"{row['images_per_second']:.1f}",
            "-" if row["ratio_infer_to_backbone"] is None else f"{row['ratio_infer_to_backbone']:.2f}",
            _mib(row["memory"]["host"]["peak_kib"]),
        )
    return table


def compare_table(figures: Mapping[str, Any]) -> Table:
    """Return one row for each configuration, with its ratio to the first."""
    title = f"{figures['bundle']}, batch {figures['batch']}, {figures['turns']} turns in alternation"
    table = _table(title, "configuration")
    for name in ("infer p50 ms", "total p50 ms", "total p99 ms", "images/s", "total to first", "quartiles"):
        table.add_column(name, justify="right", no_wrap=name == "quartiles")
    for row in figures["compare"]:
        latency, ratio = row["latency_ms"], row["ratio_to_first"]
        table.add_row(
            configuration_name(row),
            f"{latency['infer']['p50']:.2f}",
            f"{latency['total']['p50']:.2f}",
            f"{latency['total']['p99']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{ratio['total']:.2f}",
            "{:.2f} to {:.2f}".format(*ratio["total_quartiles"]),
        )
    return table


_INSPECTORS = {"alone": "one camera", "shared": "{} cameras, one inspector", "own": "{} cameras, one each"}


def camera_table(figures: Mapping[str, Any]) -> Table:
    """Return one row for one camera, and one for each way to serve several."""
    title = f"{figures['bundle']} on {configuration_name(figures)}, {figures['turns']} turns, image to decision"
    table = _table(title, "cameras")
    for name in ("p50 ms", "p99 ms", "images/s", "to one", "p50 to one"):
        table.add_column(name, justify="right")
    for row in figures["cameras"]:
        table.add_row(
            _INSPECTORS[row["inspectors"]].format(row["cameras"]),
            f"{row['latency_ms']['p50']:.2f}",
            f"{row['latency_ms']['p99']:.2f}",
            f"{row['images_per_second']:.1f}",
            f"{row['ratio_to_alone']['images_per_second']:.2f}",
            f"{row['ratio_to_alone']['p50']:.2f}",
        )
    return table


def camera_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table of cameras."""
    lines = [
        "images/s of {} to one camera, quartiles over turns: {:.2f} to {:.2f}".format(
            _INSPECTORS[row["inspectors"]].format(row["cameras"]),
            *row["ratio_to_alone"]["images_per_second_quartiles"],
        )
        for row in figures["cameras"][1:]
    ]
    return [*lines, *state_lines(figures)]


def drawing_table(figures: Mapping[str, Any]) -> Table:
    """Return the times of one batch of drawn images by stage, of the first one too."""
    table = Table(
        title=f"{figures['bundle']} draws on {figures['backend']}, batch {figures['batch']}, {figures['steps']} steps "
        f"({figures['solver']}), {figures['rounds']} rounds"
    )
    table.add_column("stage", no_wrap=True)
    for name in ("first ms", "p50 ms", "p90 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for stage, latency in figures["latency_ms"].items():
        if stage == "total":
            table.add_section()
        times = (figures["first_ms"][stage], latency["p50"], latency["p90"], latency["p99"])
        table.add_row(stage, *(f"{value:.2f}" for value in times))
    return table


def drawing_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table of drawn images."""
    host, device = figures["memory"]["host"], figures["memory"]["device"]
    lines = [f"{figures['images_per_second']:.3g} images per second, {figures['seconds_per_image']:.3g} s an image"]
    if figures["denoiser_calls"] is None:
        lines.append(f"stages: not known: {figures['stages_reason']}")
    else:
        lines.append(f"denoiser: {figures['denoiser_calls']} calls, {figures['denoiser_call_ms']:.2f} ms each")
    lines.append(f"memory: {_mib(host['rss_after_load_kib'])} MiB after load, peak {_mib(host['peak_kib'])} MiB")
    amount = f"not known: {device['reason']}" if device["kib"] is None else f"{_mib(device['kib'])} MiB"
    return [*lines, f"device memory: {amount}", *state_lines(figures)]


_BEST_FOR = {"one_image": "latency", "images_per_second": "images/s"}


def settings_table(figures: Mapping[str, Any]) -> Table:
    """Return one row for each setting and batch; `-` is what the backend chooses by itself."""
    name = configuration_name(figures)
    table = _table(f"{figures['bundle']} on {name}, {figures['usable_cores']} cores, image to decision", "threads")
    for column in ("streams", "batch", "p50 ms", "p99 ms", "images/s", "best for"):
        table.add_column(column, justify="right", no_wrap=True)
    for number, row in enumerate(figures["settings"]):
        best = [_BEST_FOR[what] for what, place in figures["best"].items() if place == number]
        table.add_row(
            *("-" if row[column] is None else str(row[column]) for column in ("threads", "streams")),
            str(row["batch"]),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['images_per_second']:.1f}",
            ", ".join(best),
        )
    return table


def settings_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table of settings: the options of the best ones."""
    lines = []
    for what, place in figures["best"].items():
        if place is not None:
            row = figures["settings"][place]
            lines.append(f"best for {_BEST_FOR[what]}: {options_text(figures, row)}; {arguments_text(figures, row)}")
    return [*lines, *state_lines(figures)]


def soak_table(figures: Mapping[str, Any]) -> Table:
    """Return slope, interval, bound and verdict of memory and latency."""
    title = f"{figures['bundle']} on {configuration_name(figures)}, {figures['scorings']:,} scorings"
    table = _table(title, "per 1,000")
    for name in ("slope", "95 % interval", "bound", "verdict"):
        table.add_column(name, justify="right", no_wrap=name != "verdict")
    for name, unit in (("memory", "KiB"), ("latency", "µs")):
        row = figures[name]
        interval = "" if row["interval"] is None else "{:+.2f} to {:+.2f}".format(*row["interval"])
        slope = "" if row["slope"] is None else f"{row['slope']:+.2f}"
        table.add_row(f"{name}, {unit}", slope, interval, f"{row['bound']:.2f}", row["verdict"])
    return table


def summary(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines below the tables of a sweep: throughput, memory, transfers, cold start, clocks."""
    rows = figures["sweep"]
    lines = []
    if len(rows) == 1:
        infer, total = figures["ratio_infer_to_backbone"], figures["ratio_total_to_backbone"]
        ratio = "" if infer is None else f"; infer takes {infer:.2f}x, everything {total:.2f}x the backbone alone"
        lines.append(f"{figures['images_per_second']:.1f} images per second{ratio}")
    # Of the last, largest batch: the peak of a process never falls.
    host, device = rows[-1]["memory"]["host"], rows[-1]["memory"]["device"]
    growth = host["growth_kib_per_1000_rounds"]
    if host["peak_kib"] is None:
        lines.append(f"memory: not known: {host['reason']}")
    else:
        grown = f"growth not known ({host['reason']})"
        if growth is not None:
            grown = "growth {:+.0f} KiB per 1,000 rounds ({:+.0f} to {:+.0f})".format(growth, *host["growth_interval"])
        lines.append(
            f"memory: {_mib(host['rss_after_load_kib'])} MiB after load, peak {_mib(host['peak_kib'])} MiB, {grown}"
        )
    amount = f"not known: {device['reason']}" if device["kib"] is None else f"{_mib(device['kib'])} MiB"
    lines.append(f"device memory: {amount}")
    transfers = figures["transfers"]
    lines.append(
        f"transfers per image: {transfers['to_session_bytes']:,.0f} bytes to the session, "
        f"{transfers['from_session_bytes']:,.0f} back"
    )
    if figures.get("cold_start") is not None:
        parts = figures["cold_start"]["median_ms"]
        # The first part is the whole, `process`; the others add up to it.
        steps = ", ".join(f"{name.replace('_', ' ')} {parts[name]:.0f}" for name in list(parts)[1:])
        lines.append(f"cold start: {parts['process']:.0f} ms to the first decision ({steps})")
        built = figures["cold_start"].get("without_engine_ms")
        if built is not None:
            lines.append(
                f"cold start without an engine in the cache: {built['process']:.0f} ms, load {built['load']:.0f}"
            )
    return [*lines, *state_lines(figures)]


def compare_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table of a comparison."""
    worst = max(row["largest_score_difference"] for row in figures["compare"])
    return [f"scores of the golden images differ by at most {worst:.1e} of the largest", *state_lines(figures)]


def soak_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table of a soak."""
    memory = figures["memory"]
    lines = [f"scores and maps bit-identical over {figures['scorings']:,} scorings"]
    if memory["first_kib"] is None:
        lines.append(f"memory: not known: {memory['reason']}")
    else:
        lines.append(
            f"memory: {_mib(memory['first_kib'])} MiB at the first sample, {_mib(memory['last_kib'])} at the last, "
            f"peak {_mib(memory['peak_kib'])}"
        )
    for name in ("memory", "latency"):
        if figures[name]["slope"] is not None and not figures[name]["resolves_bound"]:
            lines.append(f"{name}: the interval is wider than the bound: score more images to tell")
    return [*lines, *state_lines(figures)]


def state_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return the line on clocks and load."""
    before, after = figures["state"]["before"], figures["state"]["after"]

    def clock(state: Mapping[str, Any]) -> str:
        return "not known" if state["cpu"]["mhz"] is None else f"{state['cpu']['mhz']['mean']:.0f} MHz"

    def load(state: Mapping[str, Any]) -> str:
        return "not known" if state["load_average"] is None else f"{state['load_average'][0]:.2f}"

    governor = after["cpu"]["governor"] or "governor not known"
    lines = [
        f"clocks before and after: {clock(before)}, {clock(after)} ({governor}); load {load(before)}, {load(after)}"
    ]
    if (gpu := after["gpu"])["name"] is not None:
        lines.append(f"GPU after: {gpu['name']}, {gpu['sm_mhz']} MHz, {gpu['power_w']} W, {gpu['temperature_c']} °C")
    return lines


def _table(title: str, first: str) -> Table:
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    return table


def _times(percentiles: Mapping[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in percentiles.values()]


def _mib(kib: float | None) -> str:
    return "not known" if kib is None else f"{kib / 1024:.1f}"
