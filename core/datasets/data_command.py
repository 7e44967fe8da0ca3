"""`flawscope data inspect|demo`: inspect a dataset, or generate one."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import groupby
from pathlib import Path

import click
import msgspec
from rich.table import Table
from rich.text import Text

from flawscope.datasets import Inspection, Problem, inspect_dataset, list_categories, open_dataset
from flawscope.datasets.advice import Advice, advise
from flawscope.datasets.data_options import SMALLEST_DEFECT
from flawscope.errors import DataError
from flawscope.output_options import OVERWRITE
from flawscope.rich_console import PlainConsole
from flawscope.terminal import echo, echo_json, progress_bars
from flawscope.text import printable

_LISTED = 10
_LAYOUTS = {
    "mvtec": "MVTec AD",
    "visa": "VisA",
    "real_iad": "Real-IAD",
    "records": "JSON lines",
    "folders": "class folders",
    "flat": "flat folder",
}


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option(
    "--category", metavar="NAME", help="Category below ROOT, or all for one dataset of all. Default: each by itself."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and category.")
@click.option("--all", "list_all", is_flag=True, help=f"List every problem, not only {_LISTED} of each kind.")
@SMALLEST_DEFECT
@click.option("--backbone", default="scattering", show_default=True, help="Backbone that the advice is for.")
def inspect(
    root: Path, category: str | None, as_json: bool, list_all: bool, defect_px: float | None, backbone: str
) -> None:
    """Report what is in the dataset ROOT and what is wrong with it.

    ROOT is laid out as MVTec AD (train/good, test/*, ground_truth/*), as VisA (with its CSV), as records (train.json
    and test.json, one JSON object per line), as one folder per class (good, normal or ok, and the defect types), or is
    one folder of normal images. Every file is opened, and whatever is interpreted differently from how it is stored is
    listed as a note. At the end stands which method and input size suit the images, and why; `pipeline auto` takes
    that. The exit status is 2 if a category cannot be used.
    """
    names = [category] if category is not None else list_categories(root) or [None]
    is_usable = True
    for name in names:
        try:
            dataset = open_dataset(root, name)
        except DataError as err:
            # Of several categories one broken one must not hide the report on the others.
            if len(names) == 1:
                raise
            echo(f"error: {err}", err=True)
            is_usable = False
            continue
        with progress_bars() as report:
            inspection = inspect_dataset(dataset, partial(report, f"reading {dataset.category}"))
        advice = advise(dataset, backbone=backbone, defect_px=defect_px) if inspection.is_usable else None
        if as_json:
            echo_json({**msgspec.structs.asdict(inspection), "advice": advice}, enc_hook=str)
        else:
            _print(inspection, advice, _LISTED if not list_all else None)
        # Not an exception: all categories are reported before the exit status says that one is unusable.
        is_usable &= inspection.is_usable
    if not is_usable:
        raise click.exceptions.Exit(2)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--kind", "kinds", metavar="NAME", multiple=True, help="Kind of part; may be given again. Default: all.")
@click.option("--seed", default=0, show_default=True, help="Seed of the parts.")
@click.option("--size", default=256, show_default=True, help="Height and width of the images in pixels.")
@click.option("--train", default=80, show_default=True, help="Normal training images per kind.")
@click.option("--test-good", default=30, show_default=True, help="Normal test images per kind.")
@click.option("--test-defective", default=12, show_default=True, help="Test images per kind and defect type.")
@OVERWRITE
def demo(
    folder: Path,
    kinds: tuple[str, ...],
    seed: int,
    size: int,
    train: int,
    test_good: int,
    test_defective: int,
    overwrite: bool,
) -> None:
    """Generate images of parts with and without defects, and masks, into DIR in the layout of MVTec AD."""
    # Here, because `data inspect` need not load the drawing of parts.
    from flawscope.datasets.parts import KINDS, write_dataset

    with progress_bars() as report:
        write_dataset(
            folder,
            kinds or KINDS,
            seed=seed,
            size=size,
            train=train,
            test_good=test_good,
            test_defective=test_defective,
            progress=partial(report, "drawing parts"),
            overwrite=overwrite,
        )
    echo(f"dataset: {folder} ({', '.join(kinds or KINDS)})")
    echo(f"overview: {folder / 'contact_sheet.png'}")


def _print(inspection: Inspection, advice: Advice | None, limit: int | None) -> None:
    # soft_wrap: rich would break paths at 80 columns where the output is piped.
    console = PlainConsole(soft_wrap=True)
    # Text objects, never strings: rich takes square brackets in a string, as in a path, for markup.
    where = f" ({_LAYOUTS[inspection.layout]}, {inspection.root})"
    console.print(Text.assemble((printable(inspection.category), "bold"), printable(where)))
    table = Table("split", box=None, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column("type", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("masks", justify="right")
    for count in inspection.counts:
        table.add_row(count.split, printable(count.defect), str(count.images), str(count.masks or "-"))
    console.print(table)
    if sizes := inspection.sizes:
        smallest, largest, common = (f"{w}x{h}" for h, w in (sizes.smallest, sizes.largest, sizes.most_common))
        text = smallest if sizes.distinct == 1 else f"{smallest} to {largest}, {sizes.distinct} different ones"
        often = "" if sizes.distinct == 1 else f", most often {common} ({sizes.most_common_images} images)"
        console.print(Text(f"Width x height: {text}{often}"))
    if inspection.formats:
        console.print(Text("Stored as: " + "; ".join(f"{name} ({n})" for name, n in inspection.formats.items())))
    _print_problems(console, inspection, limit)
    if advice is not None:
        console.print(Text(f"Advice: {advice.line}"))
        for reason in filter(None, (*advice.reasons, advice.size_reason)):
            console.print(Text(f"  {reason}"))
    console.print()


def _print_problems(console: PlainConsole, inspection: Inspection, limit: int | None) -> None:
    if not inspection.problems:
        console.print(Text("No problems found.", "green"))
        return
    numbers = Counter(p.severity for p in inspection.problems)
    parts = (f"{n} {name}{'s' if n > 1 and name != 'fatal' else ''}" for name, n in numbers.items())
    console.print(Text(f"Problems: {', '.join(parts)}"))
    for _, group in groupby(sorted(inspection.problems, key=_order), key=_order):
        problems = list(group)
        for problem in problems[:limit]:
            console.print(_line(problem, inspection.root))
        if limit is not None and len(problems) > limit:
            console.print(Text(f"         and {len(problems) - limit} more of this kind (--all lists them)"))


def _order(problem: Problem) -> tuple[int, str]:
    return ("fatal", "error", "note").index(problem.severity), problem.kind


def _line(problem: Problem, root: Path) -> Text:
    style = {"fatal": "bold red", "error": "red", "note": "dim"}[problem.severity]
    is_below = problem.path != root and problem.path.is_relative_to(root)
    path = problem.path.relative_to(root) if is_below else problem.path
    return Text.assemble("  ", (f"{problem.severity:5}", style), printable(f"  {path} {problem.message}"))
