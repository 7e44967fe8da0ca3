"""`flawscope export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from flawscope.bundle import Gate, Manifest
from flawscope.calibration.limits import LIMITS, METHODS, Limits, Method, gate_rows, verdict
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.export.triton import TritonOptions, TritonRecord, bundle_of, is_run, write_triton
from flawscope.terminal import command_line, progress_bars

_TRITON = TritonOptions()
_INT8 = LIMITS["int8"]
_KEPT_SHOWN = 5


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder (NAME.flaw) or repository.")
@click.option("--max-batch", type=int, default=8, show_default=True, help="Largest batch the graphs take.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="int8: graphs in 8 bits beside those in FP32, if they pass the gate. triton: which is served.",
)
@click.option(
    "--calibration-data", type=click.Path(path_type=Path), help="int8: dataset for value ranges and the gate."
)
@click.option(
    "--labelled-data", type=click.Path(path_type=Path), help="int8: dataset whose test pictures are gated too."
)
@click.option("--category", metavar="NAME", help="int8: category below the datasets' folders.")
@click.option(
    "--calibration-method", type=click.Choice(METHODS), default="percentile", show_default=True, help="int8: ranges by."
)
@click.option("--max-auroc-change", type=float, default=_INT8.image_auroc, show_default=True, help="int8: gate.")
@click.option("--min-spearman", type=float, default=_INT8.spearman, show_default=True, help="int8: gate.")
@click.option("--max-false-rejects", type=float, default=_INT8.false_rejects, show_default=True, help="int8: gate.")
@click.option("--max-score-change", type=float, default=_INT8.score_error, show_default=True, help="int8: gate.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["bundle", "triton"]),
    default="bundle",
    show_default=True,
    help="triton: add a model to the Triton model repository --out; RUN may then be a bundle.",
)
@click.option("--model-name", help="triton: name of the model  [default: the bundle's]")
@click.option(
    "--device", type=click.Choice(["cpu", "gpu"]), default=_TRITON.device, show_default=True, help="triton: runs on."
)
@click.option("--instances", type=int, default=_TRITON.instances, show_default=True, help="triton: instances a device.")
@click.option(
    "--queue-delay-us", type=int, default=_TRITON.queue_delay_us, show_default=True, help="triton: longest wait."
)
@click.option("--preferred-batch", type=int, multiple=True, help="triton: batch to aim for; may be repeated.")
def export(
    run: Path,
    out: Path,
    max_batch: int,
    precision: str,
    calibration_data: Path | None,
    labelled_data: Path | None,
    category: str | None,
    calibration_method: Method,
    max_auroc_change: float,
    min_spearman: float,
    max_false_rejects: float,
    max_score_change: float,
    layout: str,
    model_name: str | None,
    device: Literal["cpu", "gpu"],
    instances: int,
    queue_delay_us: int,
    preferred_batch: tuple[int, ...],
) -> None:
    """Turn a training run into a bundle that needs no PyTorch, or into a model for Triton.

    The bundle is written only if every tensor is proven to fit and torch, graph and native path agree on real pictures.
    """
    _check_format(run, layout)
    limits = Limits(max_auroc_change, max_auroc_change, min_spearman, max_false_rejects, max_score_change)
    _check_precision(run, precision, calibration_data, layout)

    def write(target: Path) -> Manifest:
        data = (calibration_data, labelled_data, category)
        return _export_bundle(run, target, max_batch, precision, data, calibration_method, limits)

    if layout == "bundle":
        show_export(write(out), out)
        return
    options = TritonOptions(model_name, device, instances, queue_delay_us, preferred_batch, precision)
    with bundle_of(run, lambda target: show_export(write(target), None)) as bundle:
        record = write_triton(bundle, out, options)
    show_triton(record, out)


def _check_format(run: Path, layout: str) -> None:
    """Refuse options that would have no effect."""
    context = click.get_current_context()
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("model_name", "device", "instances", "queue_delay_us", "preferred_batch", "max_batch")
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    idle = [name for name in given if name != "--max-batch"] if layout == "bundle" else []
    if idle:
        raise ArgumentError(f"{idle[0]}: expected it with --format triton, got it with --format bundle. Leave it out.")
    if layout == "triton" and "--max-batch" in given and not is_run(run):
        raise ArgumentError(
            f"--max-batch: expected it with a run, got it with {run}. A bundle's graphs have their largest batch: "
            "leave it out, or export the run again."
        )


def _check_precision(run: Path, precision: str, calibration_data: Path | None, layout: str) -> None:
    """Refuse INT8 without pictures, and options of INT8 without it."""
    context = click.get_current_context()
    if precision == "int8":
        if calibration_data is None and (layout == "bundle" or is_run(run)):
            raise ArgumentError(
                "--precision int8: expected --calibration-data ROOT with good pictures, got none. Name the dataset "
                "that the detector was trained on."
            )
        return
    names = ("calibration_data", "labelled_data", "category", "calibration_method", "max_auroc_change", "min_spearman")
    for name in (*names, "max_false_rejects", "max_score_change"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise ArgumentError(
                f"--{name.replace('_', '-')}: expected it with --precision int8, got it with {precision}. Leave it out."
            )


def _export_bundle(
    run: Path,
    out: Path,
    max_batch: int,
    precision: str,
    data: tuple[Path | None, Path | None, str | None],
    method: Method,
    limits: Limits,
) -> Manifest:
    try:
        from flawscope.export.exporting import export_run
        from flawscope.export.precisions import PrecisionRefused, Wanted
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    calibration, labelled, category = data
    wanted = None
    if calibration is not None and precision != "fp32":
        wanted = Wanted(
            (precision,),
            open_dataset(calibration, category),
            None if labelled is None else open_dataset(labelled, category),
            method,
            {precision: limits},
        )
    try:
        with progress_bars() as progress:
            return export_run(run, out, max_batch=max_batch, wanted=wanted, command=command_line(), progress=progress)
    except PrecisionRefused as err:
        show_gate(err.precision, err.gate)
        raise


def show_gate(precision: str, gate: Gate) -> None:
    """Print what a precision does to the figures of FP32, and what its speed says."""
    labels = f"{gate.labelled} labelled pictures, {gate.anomalous} of them defective" if gate.labelled else "no labels"
    click.echo(f"gate of {precision} on {gate.backend}: {gate.images} good pictures, {labels}")
    for what, before, change in gate_rows(gate, precision):
        click.echo(f"  {what:<44} {before:>8}  {change}")
    click.echo(f"  {verdict(gate, precision)}")


def show_triton(record: TritonRecord, repository: Path) -> None:
    """Print what was written to a model repository, and what a client has to do itself."""
    size = sum(entry.size for entry in record.files.values())
    click.echo(
        f"triton: {repository / record.name} ({size / 2**20:.1f} MiB), golden pictures checked: {len(record.golden)}"
    )
    if record.thresholds is None:
        click.echo("triton: not calibrated: no thresholds, so clients can decide nothing but fault")
    click.echo("triton: Triton applies no threshold and decodes no picture: clients do, see docs/triton.md")


def show_export(manifest: Manifest, out: Path | None) -> None:
    """Print what was exported: sizes and parity, and where it is if it stays."""
    for name, graph in sorted(manifest.graphs.items()):
        click.echo(
            f"{name}.onnx: largest tensor {graph.largest_elements:,} elements (limit 2,147,483,648), "
            f"about {graph.peak_bytes / 2**20:.0f} MiB at batch {manifest.max_batch}"
        )
    for row in manifest.evidence.parity:
        rank = "not defined" if row.score_spearman is None else f"{row.score_spearman:.4f}"
        click.echo(
            f"parity {row.candidate} against {row.reference}, {row.images} pictures: "
            f"scores {row.score_max_relative:.1e}, maps {row.map_max_relative:.1e} relative, rank correlation {rank}"
        )
    for precision, made in sorted(manifest.precisions.items()):
        click.echo(f"{precision}: {made.quantised} operators quantised, {len(made.kept)} kept in FP32; {made.method}")
        for node in made.kept[:_KEPT_SHOWN]:
            click.echo(f"  kept {node.node} ({node.operator}): {node.reason}")
        if len(made.kept) > _KEPT_SHOWN:
            click.echo(f"  and {len(made.kept) - _KEPT_SHOWN} less sensitive ones, all of them in the manifest")
        if made.gate is not None:
            show_gate(precision, made.gate)
    if out is None:
        return
    size = sum(entry.size for entry in manifest.files.values())
    click.echo(f"bundle: {out} ({size / 2**20:.1f} MiB), not calibrated yet")
