"""`flawscope benchmark`: methods over the categories of data sets, as tables with intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from flawscope.config import build_config, parse_assignment
from flawscope.datasets.data_options import CATEGORIES, split_categories
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.files import check_replaceable, write_bytes, write_text
from flawscope.methods import METHODS
from flawscope.output_options import OVERWRITE
from flawscope.progress_display import duration
from flawscope.terminal import command_line, echo
from flawscope.text import encode_json, printable

if TYPE_CHECKING:
    from flawscope.workflows.accuracy.cells import Cell, CellResult

_JSON, _MARKDOWN = "benchmark.json", "benchmark.md"
_DETECTORS = tuple(name for name, row in METHODS.items() if row.kind == "detector")


@click.command()
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for tables, results and logs.")
@click.option(
    "--methods",
    default="padim,patchcore",
    show_default=True,
    metavar="NAME,...",
    help=f"Methods, with commas: {', '.join(_DETECTORS)}, or auto.",
)
@CATEGORIES
@click.option("--seeds", default="0", show_default=True, metavar="N,...", help="Seeds, each a training of its own.")
@click.option("--backbone", metavar="NAME", help="Backbone of all methods.  [default: that of the method]")
@click.option("--weights", type=click.Path(path_type=Path), help="Safetensors file of the backbone.")
@click.option("--image-size", type=int, metavar="N", help="Input size of all methods.  [default: that of the method]")
@click.option(
    "--set", "assignments", multiple=True, metavar="[METHOD.]KEY=VALUE", help="A setting, of all methods or of one."
)
@click.option("--keep", is_flag=True, help="Keep runs, bundles and reports of the cells.")
@click.option("--resume", is_flag=True, help="Go on in --out: finished cells stay, interrupted trainings go on.")
@OVERWRITE
def benchmark(
    datasets: tuple[str, ...],
    out: Path,
    methods: str,
    categories: tuple[str, ...],
    seeds: str,
    backbone: str | None,
    weights: Path | None,
    image_size: int | None,
    assignments: tuple[str, ...],
    keep: bool,
    resume: bool,
    overwrite: bool,
) -> int:
    """Measure methods on every category of data sets: accuracy with intervals, time and memory.

    DATASET is the folder of a data set in any layout that flawscope reads (MVTec AD, MVTec AD 2, VisA, BTAD, MPDD,
    Real-IAD, your own), or NAME=FOLDER. Each method, category and seed is one call of `flawscope pipeline`, in a
    process of its own, whose command is in the results. Writes benchmark.md and benchmark.json to --out after each.

    With --resume finished cells are not measured again, so that methods, categories and seeds can be added. The exit
    status is 1 when a cell failed; the others are measured all the same.
    """
    try:
        from flawscope.workflows.accuracy.cells import alone_in, forget, plan_cells, read_result
    except ModuleNotFoundError as err:
        raise MissingExtra("the benchmark", str(err.name), "all") from err
    if resume and overwrite:
        raise ArgumentError("--resume: expected it or --overwrite, got both. Leave one out.")
    chosen = _methods(methods)
    options = {name: _options(name, chosen, backbone, weights, image_size, assignments) for name in chosen}
    cells = plan_cells(out, _datasets(datasets), split_categories(categories), chosen, _seeds(seeds), options)
    check_replaceable(out, _JSON, overwrite=overwrite or resume)
    with alone_in(out) as lock:
        done: dict[str, CellResult] = {}
        for cell in cells:
            if overwrite:
                forget(cell)
            elif resume and (result := read_result(cell)) is not None:
                done[cell.name] = result
        if done:
            echo(f"{len(done)} of {len(cells)} cells are measured already", err=True)
        return _measure(cells, done, out, keep, lock)


def _measure(cells: Sequence[Cell], done: dict[str, CellResult], out: Path, keep: bool, lock: int) -> int:
    from flawscope.workflows.accuracy.cells import run_cell

    # Before the first cell: a folder that was interrupted in it is known as a benchmark's.
    _write(out, cells, done)
    spent: dict[str, list[float]] = {}
    for number, cell in enumerate(cells, 1):
        if cell.name in done:
            continue
        echo(f"[{number}/{len(cells)}] {printable(cell.name)}{_left(cells[number - 1 :], done, spent)}", err=True)
        done[cell.name] = result = run_cell(cell, keeps=keep, lock=lock)
        spent.setdefault(cell.method, []).append(result.seconds)
        _write(out, cells, done)
        echo(_line(cell, result))
    failed = [cell.name for cell in cells if done[cell.name].error is not None]
    echo(f"{len(cells) - len(failed)} of {len(cells)} cells measured: {out / _MARKDOWN}", err=True)
    if failed:
        echo(f"note: failed, and tried again with --resume: {', '.join(map(printable, failed))}", err=True)
    return 1 if failed else 0


def _line(cell: Cell, result: CellResult) -> str:
    from flawscope.workflows.accuracy.cells import FIGURES

    if result.error is not None:
        return f"{cell.name:<40} {result.seconds:7.1f} s  failed: {printable(result.error)}"
    figures = [f"{title} {value:.4f}" for key, title in FIGURES.items() if (value := result.figures[key]) is not None]
    return f"{printable(cell.name):<40} {result.seconds:7.1f} s  {', '.join(figures) or 'no figures'}"


def _left(cells: Sequence[Cell], done: Mapping[str, CellResult], spent: Mapping[str, Sequence[float]]) -> str:
    """Return the time that the cells to come will take, where all their methods have been measured here."""
    ahead = [cell for cell in cells if cell.name not in done]
    if any(cell.method not in spent for cell in ahead):
        return ""
    seconds = sum(sum(spent[cell.method]) / len(spent[cell.method]) for cell in ahead)
    return f"  (about {duration(seconds)} left)"


def _write(out: Path, cells: Sequence[Cell], done: Mapping[str, CellResult]) -> None:
    from flawscope.workflows.accuracy.tables import Benchmark, machine_facts, means_of, to_markdown

    results = tuple(done[cell.name] for cell in cells if cell.name in done)
    whole = Benchmark(
        command=command_line(),
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=machine_facts(os.cpu_count()),
        cells=results,
        means=means_of(results),
        planned=len(cells),
    )
    write_bytes(out / _JSON, msgspec.json.format(encode_json(whole), indent=1) + b"\n")
    write_text(out / _MARKDOWN, to_markdown(whole))


def _datasets(texts: Sequence[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for text in texts:
        # A folder that is there wins: its name may have an equals sign.
        name, equals, folder = ("", "", text) if Path(text).exists() else text.partition("=")
        if not text or (equals and not folder):
            raise ArgumentError(f"DATASET: expected a folder, or NAME=FOLDER, got {text!r}.")
        root = Path(folder if equals or not name else name)
        name = name if equals else root.resolve().name
        if not name or Path(name).name != name or name == ".." or not name.isprintable():
            raise ArgumentError(f"DATASET: expected a folder, or NAME=FOLDER, got {text!r}.")
        if name in named:
            raise ArgumentError(
                f"DATASET: expected a name for each, got {name} twice ({named[name]} and {root}). Say NAME=FOLDER."
            )
        named[name] = root
    return named


def _methods(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in (*_DETECTORS, "auto")]
    if not names or unknown:
        raise ArgumentError(
            f"--methods: expected names of detectors ({', '.join(_DETECTORS)}, auto), got "
            f"{', '.join(unknown) or 'none'}. Mend the names."
        )
    return names


def _seeds(text: str) -> list[int]:
    try:
        seeds = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise ArgumentError(f"--seeds: expected numbers from 0 on with commas, such as 0,1,2; got {text!r}.")
    return seeds


def _options(
    method: str,
    methods: Sequence[str],
    backbone: str | None,
    weights: Path | None,
    image_size: int | None,
    assignments: Sequence[str],
) -> tuple[str, ...]:
    """Return the further arguments of `flawscope pipeline METHOD`, checked before the first cell runs."""
    arguments: list[str] = [] if backbone is None else ["--backbone", backbone]
    arguments += [] if weights is None else ["--weights", str(weights)]
    arguments += [] if image_size is None else ["--image-size", str(image_size)]
    # As `flawscope pipeline` takes them.
    settings: dict[str, Any] = {} if backbone is None else {"backbone": backbone}
    settings |= {} if image_size is None else {"resize": image_size}
    if weights is not None and not weights.is_file():
        raise ArgumentError(f"--weights {weights}: expected a safetensors file, got none there. Check the path.")
    for text in assignments:
        owner, dot, rest = text.partition(".")
        # `METHOD.KEY=VALUE`; a value may have a dot too, as in learning_rate=0.1.
        is_named = dot and "=" not in owner
        if is_named and owner not in methods:
            raise ArgumentError(
                f"--set {text}: expected KEY=VALUE, or METHOD.KEY=VALUE with one of {', '.join(methods)}, got "
                f"{owner!r}. Mend the name."
            )
        if is_named and owner != method:
            continue
        assignment = rest if is_named else text
        key, value = parse_assignment(assignment)
        settings[key] = value
        arguments += ["--set", assignment]
    if method != "auto":
        build_config(method, settings)
    return tuple(arguments)
