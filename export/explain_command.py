"""`flawscope explain`: finds the first tensor on which two implementations disagree."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.export.source_kind import draws_defects
from flawscope.terminal import echo, progress_bars


@click.command()
@click.argument("source", metavar="RUN_OR_BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--against",
    multiple=True,
    metavar="BACKEND[:PRECISION]",
    help="Of a bundle: plain (the CPU without graph optimisation), cpu:int8, cpu:fp16, cuda, ...; may be repeated.  "
    "[default: all that the bundle and this machine have]",
)
@click.option(
    "--tolerance",
    type=float,
    help="Largest RMS difference, relative to the tensor.  [default: 1e-4 fp32, 1e-2 fp16, 1e-1 int8]",
)
@trusted_keys_option
def explain(source: Path, against: tuple[str, ...], tolerance: float | None) -> int:
    """Find the first tensor on which two implementations disagree; write nothing.

    For a run, torch is compared with the exported graph; for a bundle, its FP32 graph on the CPU with --against. The
    exit status is 1 if a tensor is outside the tolerance.
    """
    if draws_defects(source):
        raise ArgumentError(
            f"{source}: expected a run or a bundle of a detector, got a generator. flawscope export compares the "
            "images that torch and its graphs draw."
        )
    # Imported here: it needs torch and onnx, which help pages and lean devices do without.
    try:
        from flawscope.export.explain_sources import explain_source, lines_of
    except ModuleNotFoundError as err:
        raise MissingExtra("explaining differences", str(err.name), "export") from err
    with progress_bars() as progress:
        explanations = explain_source(source, against, tolerance, progress)
    for explanation in explanations:
        for line in lines_of(explanation):
            echo(line)
    return int(any(explanation.first is not None for explanation in explanations))
