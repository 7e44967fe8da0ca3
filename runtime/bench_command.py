"""`flawscope bench`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from flawscope.files import write_bytes
from flawscope.runtime.backends import BACKENDS
from flawscope.runtime.bench import STAGES, bench
from flawscope.runtime.inspector import PATHS, Inspector
from flawscope.terminal import command_line, progress_bars


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--path", "path", type=click.Choice(PATHS), default="auto", show_default=True, help="How maps are made.")
@click.option("--batch", type=int, default=1, show_default=True, help="Pictures per inference.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Measuring time after warm-up.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to a JSON file.")
def bench_command(bundle: Path, backend: str, path: str, batch: int, seconds: float, json_file: Path | None) -> None:
    """Measure latency per stage, throughput, and the ratio to the backbone alone.

    Pictures are the bundle's golden images, encoded in memory; disk and camera are not part of the figures.
    """
    with Inspector.load(bundle, backend, path) as inspector, progress_bars() as report:
        figures = bench(
            inspector,
            batch=batch,
            seconds=seconds,
            progress=lambda share: report("measuring", round(100 * share), 100),
        )
    figures["command"] = command_line()
    if json_file is not None:
        write_bytes(json_file, msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    table = Table(title=f"{figures['bundle']} on {figures['backend']}, batch {batch}, {figures['rounds']} rounds")
    table.add_column("stage")
    for name in ("p50", "p90", "p99", "p99.9"):
        table.add_column(f"{name} ms", justify="right")
    for stage in STAGES:
        table.add_row(stage, *(f"{value:.2f}" for value in figures["latency_ms"][stage].values()))
    table.add_section()
    table.add_row("backbone alone", *(f"{value:.2f}" for value in figures["backbone_ms"].values()))
    Console().print(table)
    click.echo(
        f"{figures['images_per_second']:.1f} images per second; infer takes {figures['ratio_infer_to_backbone']:.2f}x, "
        f"everything {figures['ratio_total_to_backbone']:.2f}x the backbone alone"
    )
