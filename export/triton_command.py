"""`flawscope export-triton`: writes a bundle or a run into a Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError
from flawscope.export.export_command import MAX_BATCH, export_detector, show_export
from flawscope.export.precision_options import PrecisionRequest, precision_options
from flawscope.export.source_kind import draws_defects, is_run
from flawscope.export.triton import TritonRecord, bundle_of, check_precision, write_models
from flawscope.export.triton_config import RECORD, TritonOptions
from flawscope.files import check_replaceable
from flawscope.given_options import is_given
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo

_DEFAULTS = TritonOptions()


@click.command()
@click.argument("source", metavar="BUNDLE_OR_RUN", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="REPOSITORY",
    required=True,
    help="Model repository to add a model to.",
)
@click.option("--model-name", help="Name of the model.  [default: the bundle's]")
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default=_DEFAULTS.device,
    show_default=True,
    help="Device of the model.",
)
@click.option("--instances", type=int, default=_DEFAULTS.instances, show_default=True, help="Instances per device.")
@click.option(
    "--queue-delay-us", type=int, default=_DEFAULTS.queue_delay_us, show_default=True, help="Longest wait for a batch."
)
@click.option("--preferred-batch", type=int, multiple=True, help="Batch to aim for; may be repeated.")
@click.option(
    "--max-batch", type=int, default=MAX_BATCH, show_default=True, help="Of a run: largest batch the graphs take."
)
@OVERWRITE
@precision_options("The one that is served: one of the bundle's; of a run it is made first.  [default: fp32]")
@trusted_keys_option
def export_triton(
    request: PrecisionRequest,
    source: Path,
    out: Path,
    model_name: str | None,
    device: Literal["cpu", "gpu"],
    instances: int,
    queue_delay_us: int,
    preferred_batch: tuple[int, ...],
    max_batch: int,
    overwrite: bool,
) -> None:
    """Add a model to the Triton model repository REPOSITORY: graph, configuration, thresholds and golden images.

    A run is exported to a temporary bundle first, with its parity gate. Triton applies no threshold and decodes no
    image: clients do, see docs/triton.md.
    """
    _check(source, request)
    if is_run(source):
        # Its bundle, which takes minutes to make, gets this name; that of a bundle is checked as soon as it is read.
        check_replaceable(out / (model_name or source.resolve().name), RECORD, overwrite=overwrite)
    served = request.precisions[0] if request.precisions else "fp32"
    options = TritonOptions(model_name, device, instances, queue_delay_us, preferred_batch, served)

    def export_shown(target: Path) -> None:
        show_export(export_detector(source, target, max_batch, request, bank_room=0), None)

    with bundle_of(source, export_shown) as bundle:
        records = write_models(bundle, out, options, overwrite=overwrite)
    for record in records:
        show_triton(record, out)
    echo("triton: Triton applies no threshold and decodes no image: clients do, see docs/triton.md")


def _check(source: Path, request: PrecisionRequest) -> None:
    """Refuse sources that Triton cannot serve, and options that would have no effect."""
    if draws_defects(source):
        raise ArgumentError(
            f"{source}: expected a bundle, or a run of a detector, got a generator. Triton serves graphs that score: "
            "draw with flawscope synth generate."
        )
    if len(request.precisions) > 1:
        raise ArgumentError(
            f"--precision: expected one that Triton serves, got {' and '.join(request.precisions)}. Export a model "
            "for each."
        )
    if request.precisions:
        check_precision(request.precisions[0])
    if is_run(source):
        request.check_run()
        return
    if is_given("max_batch"):
        raise ArgumentError(
            f"--max-batch: expected it with a run, got it with {source}. A bundle's graphs have their largest batch: "
            "leave it out, or export the run again."
        )
    request.check_bundle(source)


def show_triton(record: TritonRecord, repository: Path) -> None:
    """Print what was written to a model repository."""
    size = sum(entry.size for entry in record.files.values())
    place = f"{repository / record.name} version {record.version}"
    echo(f"triton: {place} ({size / 2**20:.1f} MiB), golden images checked: {len(record.golden)}")
    if record.beside:
        echo(
            f"triton: {' and '.join(record.beside)} are not in the graph: only flawscope's client decides, with the "
            "bundle; see docs/triton.md"
        )
    elif record.thresholds is None:
        echo("triton: not calibrated: no thresholds, so clients can decide nothing but fault")
    elif record.thresholds.by_product:
        names = ", ".join(row.name for row in record.thresholds.by_product)
        echo(f"triton: the rule of {RECORD} decides by the common thresholds; those by product ({names}) are beside")
