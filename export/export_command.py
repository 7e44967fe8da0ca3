"""`flawscope export`: a bundle from a training run."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from flawscope.bundle import Gate, Manifest, SynthHead
from flawscope.calibration.quantization.gate_limits import gate_rows, verdict
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.export.precision_options import PrecisionRequest, given, precision_options
from flawscope.export.source_kind import draws_defects
from flawscope.terminal import command_line, progress_bars

MAX_BATCH = 8
"""Largest batch of a graph where none is asked for."""
_KEPT_SHOWN = 5
_TRITON, _EXPLAIN = "flawscope export-triton SOURCE --out REPOSITORY", "flawscope explain SOURCE"
_MOVED = {
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
"""Option that `export` had before -> the command that does its work."""


class _ExportCommand(click.Command):
    """Names the command that has an option which `export` had before, where click would only say: no such option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            if (command := _MOVED.get(err.option_name)) is None:
                raise
            raise click.UsageError(
                f"{err.option_name}: expected no such option, got it. Its work is another verb's: {command}."
            ) from err


@click.command(cls=_ExportCommand)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder (NAME.flaw).")
@click.option(
    "--max-batch",
    type=int,
    default=MAX_BATCH,
    show_default=True,
    help="Largest batch the graphs take; of what draws defects 16, from 512 px on 2, unless it is given.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="embedding, inpainting: where the base lies, if not where it was.",
)
@click.option(
    "--embedding",
    "embeddings",
    multiple=True,
    metavar="DEFECT=FILE",
    help="embedding, base: a learned word (.safetensors) to add; may be repeated. DEFECT may be CATEGORY/DEFECT.",
)
@precision_options(
    "fp16, int8: graphs in fewer bits beside those in FP32, if they pass the gate; may be repeated.  [default: fp32]"
)
def export(
    request: PrecisionRequest, run: Path, out: Path, max_batch: int, base: Path | None, embeddings: tuple[str, ...]
) -> None:
    """Turn a training run into a bundle that needs no PyTorch.

    The bundle is written only if every tensor is proven to fit and torch, graph and native path agree on real images.
    RUN may be one of embedding, inpainting or base, or a Stable Diffusion folder: the bundle then draws defects.
    """
    if draws_defects(run):
        _check_drawing_options(run, request)
        words = [_parse_embedding(text) for text in embeddings]
        _export_generator(run, out, max_batch if given("max_batch") else None, base, words, request)
        return
    for name in ("base", "embeddings"):
        if given(name):
            raise ArgumentError(
                f"--{name.rstrip('s')}: expected it with a run of embedding, inpainting or base, got it with {run}. "
                "Leave it out."
            )
    request.check_run()
    show_export(export_detector(run, out, max_batch, request), out)


def _check_drawing_options(source: Path, request: PrecisionRequest) -> None:
    """Refuse options of what scores: they would have no effect."""
    allowed = {"run", "out", "max_batch", "base", "embeddings", "precisions"}
    allowed |= {"modelopt_python"} if request.precisions else set()
    for parameter in click.get_current_context().command.params:
        if parameter.name not in allowed and given(parameter.name or ""):
            raise ArgumentError(
                f"{parameter.opts[0]}: expected no such option with {source}, which draws defects and does not score, "
                "got it. Leave it out."
            )


def _parse_embedding(text: str) -> tuple[str, Path]:
    name, is_there, file = text.partition("=")
    if not name or not is_there or not file:
        raise ArgumentError(f"--embedding: expected DEFECT=FILE or CATEGORY/DEFECT=FILE, got {text!r}.")
    return name, Path(file)


def _export_generator(
    source: Path,
    out: Path,
    max_batch: int | None,
    base: Path | None,
    words: list[tuple[str, Path]],
    request: PrecisionRequest,
) -> None:
    try:
        from flawscope.export.synthesis.generator_export import export_synthesis
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    with progress_bars() as progress:
        manifest = export_synthesis(
            source,
            out,
            base=base,
            embeddings=words,
            max_batch=max_batch,
            precisions=request.precisions,
            modelopt_python=request.modelopt_python,
            command=command_line(),
            progress=progress,
        )
    show_synthesis(manifest, out)


def export_detector(run: Path, out: Path, max_batch: int, request: PrecisionRequest) -> Manifest:
    """Export the run of a detector; print the gate's figures where it refuses a precision.

    Raises:
        MissingExtra: If a library that exports is not installed.
        GateError: If a precision or the parity is outside its limits.
    """
    try:
        from flawscope.export.detectors.detector_export import export_run
        from flawscope.export.precisions import PrecisionRefused
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    wanted = request.open_data()
    try:
        with progress_bars() as progress:
            return export_run(run, out, max_batch=max_batch, wanted=wanted, command=command_line(), progress=progress)
    except PrecisionRefused as err:
        show_gate(err.precision, err.gate)
        raise


def show_gate(precision: str, gate: Gate) -> None:
    """Print what a precision does to the figures of FP32, and what its speed says."""
    labels = f"{gate.labelled} labelled images, {gate.anomalous} of them anomalous" if gate.labelled else "no labels"
    click.echo(f"gate of {precision} on {gate.backend}: {gate.images} normal images, {labels}")
    for what, before, change in gate_rows(gate, precision):
        click.echo(f"  {what:<44} {before:>8}  {change}")
    click.echo(f"  {verdict(gate, precision)}")


def show_synthesis(manifest: Manifest, out: Path) -> None:
    """Print what was exported that draws defects: sizes, parity, what it draws, and where it is."""
    head = cast("SynthHead", manifest.head)
    _show_graphs(manifest)
    for row in head.parity:
        click.echo(
            f"parity {row.candidate} against {row.reference}, {row.images} images in {row.steps} steps: "
            f"at least {row.psnr_db:.1f} dB"
        )
    names = ", ".join(f"{defect.category}/{defect.name}" for defect in head.defects)
    click.echo(f"draws: {names or 'what a text says, no learned defects'}; licence of the base: {head.licence}")
    click.echo(f"bundle: {out} ({_size(manifest) / 2**20:.1f} MiB)")


def _show_graphs(manifest: Manifest) -> None:
    for name, graph in sorted(manifest.graphs.items()):
        click.echo(
            f"{name}.onnx: largest tensor {graph.largest_elements:,} elements (limit 2,147,483,648), "
            f"about {graph.peak_bytes / 2**20:.0f} MiB at batch {manifest.max_batch}"
        )


def _size(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files.values())


def show_export(manifest: Manifest, out: Path | None) -> None:
    """Print what was exported: sizes and parity, and where it is if it stays."""
    _show_graphs(manifest)
    for row in manifest.evidence.parity:
        rank = "not defined" if row.score_spearman is None else f"{row.score_spearman:.4f}"
        click.echo(
            f"parity {row.candidate} against {row.reference}, {row.images} images: "
            f"scores {row.score_max_relative:.1e}, maps {row.map_max_relative:.1e} relative, rank correlation {rank}"
        )
    for precision, made in sorted(manifest.precisions.items()):
        others = f"{len(made.kept)} operators kept out of it"
        click.echo(f"{precision}: {made.quantised} convolutions and products in it, {others}; {made.method}")
        for node in made.kept[:_KEPT_SHOWN]:
            click.echo(f"  kept {node.node} ({node.operator}): {node.reason}")
        if len(made.kept) > _KEPT_SHOWN:
            click.echo(f"  and {len(made.kept) - _KEPT_SHOWN} less sensitive ones, all of them in the manifest")
        if made.gate is not None:
            show_gate(precision, made.gate)
    if out is None:
        return
    click.echo(f"bundle: {out} ({_size(manifest) / 2**20:.1f} MiB), not calibrated yet")
