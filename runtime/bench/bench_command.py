"""`flawscope bench`: latency and memory of a bundle, comparisons of configurations, and soak tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource
from rich.table import Table

from flawscope.bundle import PRECISIONS, Bundle, trusted_bundle
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.diffusion.latent_inpainting import SOLVERS, Solver
from flawscope.errors import ArgumentError, GateError
from flawscope.files import check_new_file, write_bytes
from flawscope.output_options import OVERWRITE
from flawscope.rich_console import PlainConsole
from flawscope.runtime.backends import BACKENDS
from flawscope.runtime.backends.cores_options import cores_options
from flawscope.runtime.bench.alternation import compare, parse_configuration
from flawscope.runtime.bench.bench_plot import check_plot, write_plot
from flawscope.runtime.bench.bench_tables import (
    camera_lines,
    camera_table,
    compare_lines,
    compare_table,
    drawing_lines,
    drawing_table,
    settings_lines,
    settings_table,
    soak_lines,
    soak_table,
    stage_table,
    summary,
    sweep_table,
)
from flawscope.runtime.bench.cold_start import cold_start
from flawscope.runtime.bench.drawing import bench_drawing
from flawscope.runtime.bench.measurement import sweep
from flawscope.runtime.bench.settings_search import find_settings
from flawscope.runtime.bench.several_cameras import several_cameras
from flawscope.runtime.bench.soak import soak
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.scorers.scorer import PATHS
from flawscope.runtime.synthesis.draw_options import DrawOptions
from flawscope.runtime.synthesis.synthesizer import Synthesizer
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.text import encode_json

DRAWS, SCORES = "a bundle that draws", "a bundle that scores"


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="What computes.")
@click.option("--path", "path", type=click.Choice(PATHS), default="auto", show_default=True, help="How maps are made.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Graphs.")
@click.option(
    "--batch", "batches", multiple=True, default=["1"], show_default=True,
    help="Images per inference; several as 1,2,4,8 or by giving the option again.",
)  # fmt: skip
@cores_options
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Measuring time after warm-up, per batch.")
@click.option("--no-cold-start", is_flag=True, help="Do not start new processes to measure the cold start.")
@click.option(
    "--compare", "configurations", multiple=True, metavar="BACKEND[:PATH[:PRECISION]]",
    help="Measure this configuration in alternation with the others; give it twice or more.",
)  # fmt: skip
@click.option(
    "--find-settings", "finds_settings", is_flag=True,
    help="Measure threads, streams and batches in turns; print the best options for one image and for many.",
)  # fmt: skip
@click.option(
    "--cameras", type=int, metavar="N",
    help="Measure N cameras at once, with one inspector and with one each, beside one camera.",
)  # fmt: skip
@click.option("--soak", "scorings", type=int, metavar="N", help="Score N images; fit slopes of memory and latency.")
@click.option("--steps", type=int, help="Denoising steps of a bundle that draws.  [default: the bundle's]")
@click.option("--solver", type=click.Choice(SOLVERS), default="ddim", show_default=True, help="Their solver.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to a JSON file.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the figures to an SVG file.")
@OVERWRITE
@click.pass_context
@trusted_keys_option
def bench_command(
    context: click.Context,
    bundle: Path,
    backend: str,
    path: str,
    precision: str,
    batches: tuple[str, ...],
    threads: int | None,
    streams: int | None,
    seconds: float,
    no_cold_start: bool,
    configurations: tuple[str, ...],
    finds_settings: bool,
    cameras: int | None,
    scorings: int | None,
    steps: int | None,
    solver: Solver,
    json_file: Path | None,
    plot_file: Path | None,
    overwrite: bool,
) -> None:
    """Measure latency per stage, throughput, memory, cold start, and the ratio to the backbone alone.

    Images are the bundle's golden images, encoded in memory; disk and camera are not part of the figures. Of a bundle
    that draws defects: seconds per image, by its graphs. With --soak the exit status is 1 if memory grows.
    """
    numbers = parse_batches(batches)
    # Before minutes of measuring, not after.
    check_new_file(json_file, overwrite=overwrite, kind="json")
    check_new_file(plot_file, overwrite=overwrite, kind="svg")
    if plot_file is not None:
        check_plot(plot_file)
    chosen = {"backend": backend, "path": path, "precision": precision}
    loaded = {**chosen, "threads": threads, "streams": streams}
    if finds_settings:
        _refuse_options(
            context, "--find-settings", "threads", "streams", "no_cold_start", "configurations", "cameras", "scorings",
            "plot_file",
        )  # fmt: skip
        figures = _find_settings(bundle, chosen, numbers if _is_given(context, "batches") else None, seconds)
        _show([settings_table(figures)], settings_lines(figures))
    elif configurations:
        _refuse_options(
            context, "--compare", "backend", "path", "precision", "threads", "streams", "no_cold_start", "cameras",
            "scorings",
        )  # fmt: skip
        _check_single_batch("--compare", numbers)
        figures = _compare(bundle, configurations, numbers[0], seconds)
        _show([compare_table(figures)], compare_lines(figures))
    elif cameras is not None:
        _refuse_options(context, "--cameras", "batches", "no_cold_start", "scorings", "plot_file")
        figures = _cameras(bundle, loaded, cameras, seconds)
        _show([camera_table(figures)], camera_lines(figures))
    elif scorings is not None:
        _refuse_options(context, "--soak", "seconds", "no_cold_start")
        _check_single_batch("--soak", numbers)
        figures = _soak(bundle, loaded, numbers[0], scorings)
        _show([soak_table(figures)], soak_lines(figures))
    else:
        figures = _measure(context, bundle, loaded, numbers, seconds, not no_cold_start)
    figures["command"] = command_line()
    if json_file is not None:
        write_bytes(json_file, msgspec.json.format(encode_json(figures), indent=1) + b"\n")
    if plot_file is not None:
        write_plot(plot_file, figures)
    _check_growth(figures)  # last, so that the figures of a failed soak are written all the same


def _check_growth(figures: dict[str, Any]) -> None:
    if figures.get("is_growing"):
        raise GateError(
            f"soak: expected memory to grow by at most {figures['memory']['bound']:.3g} KiB per 1,000 scorings, got "
            f"{figures['memory']['slope']:.1f} KiB. Repeat with more scorings, and report it if it stays."
        )


def parse_batches(texts: Iterable[str]) -> tuple[int, ...]:
    """Return the batch sizes in options such as `1` or `1,2,4,8`, ascending, each once.

    Raises:
        ArgumentError: If one is no number.
    """
    numbers = [number.strip() for text in texts for number in text.split(",")]
    for number in numbers:
        # Negative numbers pass here: `check_batch` refuses them with the bundle's range.
        if not number.removeprefix("-").isdecimal() or len(number) > 9:
            raise ArgumentError(f"batch: expected a number such as 1, or several as 1,2,4,8, got {number!r}.")
    # Ascending, because peak memory is that of the process so far: a larger batch must not come before a smaller one.
    return tuple(sorted({int(number) for number in numbers}))


def _measure(
    context: click.Context,
    path: Path,
    loaded: dict[str, Any],
    batches: tuple[int, ...],
    seconds: float,
    has_cold_start: bool,
) -> dict[str, Any]:
    """Measure and show a bundle by what it does: one that scores, or one that draws."""
    with trusted_bundle(path) as bundle:
        if bundle.manifest.kind == "synth":
            _refuse_options(context, DRAWS, "path", "threads", "streams", "no_cold_start", "plot_file")
            _check_single_batch(DRAWS, batches)
            figures = _draw(context, bundle, batches[0], seconds)
            _show([drawing_table(figures)], drawing_lines(figures))
            return figures
        _refuse_options(context, SCORES)
        figures = _sweep(bundle, loaded, batches, seconds, has_cold_start)
        _show([stage_table(figures) if len(batches) == 1 else sweep_table(figures)], summary(figures))
        return figures


def _draw(context: click.Context, bundle: Bundle, batch: int, seconds: float) -> dict[str, Any]:
    given = context.params
    options = DrawOptions(steps=given["steps"], solver=given["solver"])
    with Synthesizer.load(bundle, given["backend"], given["precision"]) as synthesizer, progress_bars() as report:
        return bench_drawing(
            synthesizer,
            options=options,
            batch=batch,
            seconds=seconds,
            progress=lambda share: report("drawing", round(100 * share), 100),
        )


def _sweep(
    bundle: Bundle, chosen: dict[str, Any], batches: tuple[int, ...], seconds: float, has_cold_start: bool
) -> dict[str, Any]:
    with Inspector.load(bundle, **chosen) as inspector, progress_bars() as report:
        figures = sweep(
            inspector,
            batches=batches,
            seconds=seconds,
            progress=lambda share: report("measuring", round(100 * share), 100),
        )
        figures["cold_start"] = cold_start(inspector, bundle.path) if has_cold_start else None
    return figures


def _find_settings(
    bundle: Path, chosen: dict[str, str], batches: tuple[int, ...] | None, seconds: float
) -> dict[str, Any]:
    with progress_bars() as report:
        return find_settings(
            bundle,
            **chosen,
            batches=batches,
            seconds=seconds,
            progress=lambda share: report("measuring", round(100 * share), 100),
        )


def _compare(bundle: Path, texts: tuple[str, ...], batch: int, seconds: float) -> dict[str, Any]:
    configurations = [parse_configuration(text) for text in texts]
    with progress_bars() as report:
        return compare(
            bundle,
            configurations,
            batch=batch,
            seconds=seconds,
            progress=lambda share: report("measuring", round(100 * share), 100),
        )


def _cameras(bundle: Path, loaded: dict[str, Any], cameras: int, seconds: float) -> dict[str, Any]:
    with progress_bars() as report:
        return several_cameras(
            bundle,
            cameras,
            seconds=seconds,
            progress=lambda share: report("measuring", round(100 * share), 100),
            **loaded,
        )


def _soak(bundle: Path, chosen: dict[str, Any], batch: int, scorings: int) -> dict[str, Any]:
    with Inspector.load(bundle, **chosen) as inspector, progress_bars() as report:
        return soak(inspector, scorings, batch=batch, progress=lambda count: report("scoring", count, scorings))


def _show(tables: Iterable[Table], lines: Iterable[str]) -> None:
    for table in tables:
        PlainConsole().print(table)
    for line in lines:
        echo(line)


def _refuse_options(context: click.Context, mode: str, *parameters: str) -> None:
    """Raise ArgumentError if an option was given that has no effect in a mode."""
    refused = parameters if mode == DRAWS else (*parameters, "steps", "solver")
    for parameter in context.command.params:
        if parameter.name in refused and _is_given(context, parameter.name or ""):
            remedy = "Leave it out." if mode in (DRAWS, SCORES) else "Leave one of the two out."
            raise ArgumentError(f"bench: {parameter.opts[0]} has no effect with {mode}. {remedy}")


def _is_given(context: click.Context, parameter: str) -> bool:
    # By source and not by value: `--seconds 10`, which is the default, was meant to have an effect, too.
    source = context.get_parameter_source(parameter)
    return source not in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)


def _check_single_batch(mode: str, batches: tuple[int, ...]) -> None:
    if len(batches) != 1:
        raise ArgumentError(f"bench: expected one batch with {mode}, got {', '.join(map(str, batches))}.")
