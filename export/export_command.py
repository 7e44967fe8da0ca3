"""`flawscope export`: writes a bundle from a training run."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from flawscope.bundle import COMPUTED, Gate, Manifest, SynthHead
from flawscope.calibration.quantization.gate_limits import gate_rows, verdict
from flawscope.drawn_check import advice_on, describe_check
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.export.precision_options import PrecisionRequest, precision_options
from flawscope.export.source_kind import draws_defects
from flawscope.given_options import is_given
from flawscope.output_options import OVERWRITE
from flawscope.terminal import command_line, echo, progress_bars

MAX_BATCH = 8
"""Default largest batch of a detector's graphs."""
_KEPT_SHOWN = 5
"""Operators left out of a reduced precision that are printed; the manifest has all of them."""
_TRITON, _EXPLAIN = "flawscope export-triton SOURCE --out REPOSITORY", "flawscope explain SOURCE"
_FORMER_OPTIONS = {
    "--format": _TRITON,
    "--model-name": _TRITON,
    "--device": _TRITON,
    "--instances": _TRITON,
    "--queue-delay-us": _TRITON,
    "--preferred-batch": _TRITON,
    "--explain": _EXPLAIN,
    "--against": _EXPLAIN,
    "--tolerance": _EXPLAIN,
}
"""Option that `export` had in earlier releases -> the command that replaces it."""


class _ExportCommand(click.Command):
    """Names the command that replaces a former option, where click would only say: no such option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            # Only former options: any other unknown one keeps click's own message with its suggestions.
            if (command := _FORMER_OPTIONS.get(err.option_name)) is None:
                raise
            raise click.UsageError(
                f"{err.option_name}: expected no such option, got it. Another verb does its work: {command}."
            ) from err


@click.command(cls=_ExportCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder (NAME.flaw).")
@click.option(
    "--max-batch",
    type=int,
    default=MAX_BATCH,
    show_default=True,
    help="Largest batch the graphs take; for generators 16, or 2 from 512 px on, unless it is given.",
)
@click.option(
    "--bank-room",
    type=int,
    metavar="ROWS",
    help="patchcore: rows that `bundle bank add` can add to each memory bank.  [default: a quarter of its rows]",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="embedding, inpainting: folder of the base, if it has moved.",
)
@click.option(
    "--embedding",
    "embeddings",
    multiple=True,
    metavar="DEFECT=FILE",
    help="embedding, base: a learned embedding (.safetensors) to add; may be repeated. DEFECT may be CATEGORY/DEFECT.",
)
@OVERWRITE
@precision_options(
    "fp16, int8: graphs in reduced precision beside FP32, if they pass the gate; may be repeated.  [default: fp32]"
)
def export(
    request: PrecisionRequest,
    run: Path,
    out: Path,
    max_batch: int,
    bank_room: int | None,
    base: Path | None,
    embeddings: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Turn a training run into a bundle that needs no PyTorch.

    The bundle is written only if every tensor is proven to fit and torch, graph and native path agree on real images.
    If RUN is one of embedding, inpainting or base, or a Stable Diffusion folder, the bundle generates defects.
    """
    if draws_defects(run):
        _check_generator_options(run, request)
        learned_embeddings = [_parse_embedding(text) for text in embeddings]
        given_batch = max_batch if is_given("max_batch") else None  # a generator has a default of its own
        _export_generator(run, out, given_batch, base, learned_embeddings, request, overwrite)
        return
    for name in ("base", "embeddings"):  # names of parameters; the option of the latter is --embedding
        if is_given(name):
            raise ArgumentError(
                f"--{name.rstrip('s')}: expected it with a run of embedding, inpainting or base, got it with {run}. "
                "Leave it out."
            )
    request.check_run()
    show_export(export_detector(run, out, max_batch, request, bank_room=bank_room, overwrite=overwrite), out)


def _check_generator_options(source: Path, request: PrecisionRequest) -> None:
    """Refuse options of detectors: they would have no effect."""
    # A list of what is allowed, so that a new option of detectors is refused without a change here.
    allowed = {"run", "out", "max_batch", "base", "embeddings", "precisions", "overwrite"}
    allowed |= {"modelopt_python"} if request.precisions else set()
    for parameter in click.get_current_context().command.params:
        if parameter.name not in allowed and is_given(parameter.name or ""):
            raise ArgumentError(
                f"{parameter.opts[0]}: expected no such option with the generator {source}, got it. Leave it out."
            )


def _parse_embedding(text: str) -> tuple[str, Path]:
    name, separator, file = text.partition("=")
    if not name or not separator or not file:
        raise ArgumentError(f"--embedding: expected DEFECT=FILE or CATEGORY/DEFECT=FILE, got {text!r}.")
    return name, Path(file)


def _export_generator(
    source: Path,
    out: Path,
    max_batch: int | None,
    base: Path | None,
    embeddings: list[tuple[str, Path]],
    request: PrecisionRequest,
    overwrite: bool,
) -> None:
    # Imported here: it needs torch and onnx, which help pages and lean devices do without.
    try:
        from flawscope.export.synthesis.generator_export import export_synthesis
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    with progress_bars() as progress:
        manifest = export_synthesis(
            source,
            out,
            base=base,
            embeddings=embeddings,
            max_batch=max_batch,
            precisions=request.precisions,
            modelopt_python=request.modelopt_python,
            command=command_line(),
            progress=progress,
            overwrite=overwrite,
        )
    show_synthesis(manifest, out)


def export_detector(
    run: Path,
    out: Path,
    max_batch: int,
    request: PrecisionRequest,
    *,
    bank_room: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Export the run of a detector; where the gate refuses a precision, print its figures.

    Raises:
        MissingExtra: If a library for the export is not installed.
        GateError: If a precision or the parity is outside its limits.
    """
    try:
        from flawscope.export.detectors.detector_export import export_run
        from flawscope.export.precisions import PrecisionRefused
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    precisions = request.open_data()
    try:
        with progress_bars() as progress:
            return export_run(
                run,
                out,
                max_batch=max_batch,
                wanted=precisions,
                bank_room=bank_room,
                command=command_line(),
                progress=progress,
                overwrite=overwrite,
            )
    except PrecisionRefused as err:
        for gate in err.gates:
            show_gate(err.precision, gate)
        raise


def show_gate(precision: str, gate: Gate) -> None:
    """Print how a precision changes the figures of FP32, and the verdict of the gate."""
    labels = f"{gate.labelled} labelled images, {gate.anomalous} of them anomalous" if gate.labelled else "no labels"
    echo(f"gate of {precision} on {gate.backend}: {gate.images} normal images, {labels}")
    for figure, before, change in gate_rows(gate, precision):
        echo(f"  {figure:<44} {before:>8}  {change}")
    echo(f"  {verdict(gate, precision)}")


def show_synthesis(manifest: Manifest, out: Path) -> None:
    """Print sizes, parity, defects and path of an exported generator."""
    head = cast("SynthHead", manifest.head)
    _show_graphs(manifest)
    for row in head.parity:
        echo(
            f"parity {row.candidate} against {row.reference}, {row.images} images in {row.steps} steps: "
            f"at least {row.psnr_db:.1f} dB"
        )
    names = ", ".join(f"{defect.category}/{defect.name}" for defect in head.defects)
    echo(f"draws: {names or 'what a text says, no learned defects'}; licence of the base: {head.licence}")
    echo(f"bundle: {out} ({_size(manifest) / 2**20:.1f} MiB)")


def _show_graphs(manifest: Manifest) -> None:
    for name, graph in sorted(manifest.graphs.items()):
        echo(
            f"{name}.onnx: largest tensor {graph.largest_elements:,} elements (limit 2,147,483,648), "
            f"about {graph.peak_bytes / 2**20:.0f} MiB at batch {manifest.max_batch}"
        )


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def show_export(manifest: Manifest, out: Path | None) -> None:
    """Print sizes, parity and precisions of an exported detector, and its path if the bundle is kept."""
    _show_graphs(manifest)
    for row in manifest.evidence.parity:
        rank = "not defined" if row.score_spearman is None else f"{row.score_spearman:.4f}"
        echo(
            f"parity {row.candidate} against {row.reference}, {row.images} images: "
            f"scores {row.score_max_relative:.1e}, maps {row.map_max_relative:.1e} relative, rank correlation {rank}"
        )
    if manifest.evidence.drawn is not None:
        echo(f"drawn defects: {describe_check(manifest.evidence.drawn)}")
        if (advice := advice_on(manifest.evidence.drawn)) is not None:
            echo(advice, err=True)
    for name, precision in sorted(manifest.precisions.items()):
        kept_out = f"{len(precision.kept)} operators kept out of it"
        share = f"{precision.quantised} convolutions and products in it, {kept_out}; "
        echo(f"{name}: {'' if name in COMPUTED else share}{precision.method}")
        for node in precision.kept[:_KEPT_SHOWN]:
            echo(f"  kept {node.node} ({node.operator}): {node.reason}")
        if len(precision.kept) > _KEPT_SHOWN:
            echo(f"  and {len(precision.kept) - _KEPT_SHOWN} less sensitive ones, all of them in the manifest")
        for gate in precision.all_gates:
            show_gate(name, gate)
    if out is None:
        return
    echo(f"bundle: {out} ({_size(manifest) / 2**20:.1f} MiB), not calibrated yet")
