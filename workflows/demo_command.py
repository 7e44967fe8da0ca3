"""`flawscope demo`: train, export, calibrate and evaluate on generated parts, offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import msgspec

from flawscope.calibration.evaluation.rounding import figure
from flawscope.config import build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.parts import KINDS, write_dataset
from flawscope.errors import GateError, MissingExtra
from flawscope.files import check_new_file, write_bytes
from flawscope.output_options import OVERWRITE
from flawscope.terminal import command_line, echo, progress_bars
from flawscope.text import encode_json

DEMO_METHOD = "padim"
"""PaDiM has one Gaussian per position, and three of the four kinds of generated parts always lie in the same place."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder to fill.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Kind of part; all by default.")
@click.option("--method", type=click.Choice(["padim", "patchcore"]), default=DEMO_METHOD, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of parts and detector.")
@click.option("--size", type=int, default=256, show_default=True, help="Height and width of the images in pixels.")
@click.option("--train", "train_count", type=int, default=160, show_default=True, help="Normal images to learn from.")
@OVERWRITE
def demo(
    out: Path, kinds: tuple[str, ...], method: str, seed: int, size: int, train_count: int, overwrite: bool
) -> None:
    """Generate parts, train, export, calibrate, score and report, offline.

    Leaves data/, and per kind of part a run, a bundle and a report, under --out.
    """
    # Here and not above: torch, SciPy and Matplotlib come with it, and --help must work without them.
    try:
        from flawscope.workflows.pipeline import Plan, run_pipeline
    except ModuleNotFoundError as err:
        raise MissingExtra("the demo", str(err.name), "all") from err
    chosen = kinds or KINDS
    command = command_line()
    started = time.perf_counter()
    data = out / "data"
    check_new_file(out / "demo.json", overwrite=overwrite, kind="json")
    with progress_bars() as progress:
        echo(f"parts: {', '.join(chosen)}")
        write_dataset(
            data,
            tuple(chosen),
            seed=seed,
            size=size,
            train=train_count,
            progress=lambda finished, total: progress("generating parts", finished, total),
            overwrite=overwrite,
        )
    echo(f"overview: {data / 'contact_sheet.png'}")
    figures: dict[str, Any] = {}
    config, _ = build_config(method, {"seed": seed, "resize": size})
    # Thresholds come from normal images of the training split; test images are opened by the evaluation alone.
    for kind in chosen:
        # One detector per kind, as on a line: a single one for all of them would be another, harder task.
        plan = Plan(config, open_dataset(data, kind), out / kind, command=command, overwrite=overwrite)
        measured = run_pipeline(plan, bars=progress_bars).figures
        assert measured is not None, "generated parts have defects"  # without any the evaluation would be skipped
        figures[kind] = measured
        echo(f"{kind:<8} image AUROC {figure(measured.image_auroc)}  report: {plan.report / 'report.html'}")
    mean = sum(entry.image_auroc for entry in figures.values()) / len(figures)
    write_bytes(
        out / "demo.json",
        msgspec.json.format(encode_json({"image_auroc": mean, "kinds": figures}), indent=1) + b"\n",
    )
    echo(
        f"mean image AUROC {figure(mean)}: {method} with the built-in backbone on parts it had not seen, "
        f"{time.perf_counter() - started:.0f} s in all"
    )
    # Far below the usual 0.98: this finds a broken installation, not a worse seed.
    if mean < 0.9:
        raise GateError(f"demo: expected a mean image AUROC of at least 0.9, got {mean:.4f}. Something here is broken.")
