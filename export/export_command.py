"""`flawscope export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import click
from click.core import ParameterSource

from flawscope.bundle import PRECISIONS, Gate, Manifest, SynthHead
from flawscope.calibration.quantization.gate_limits import LIMITS, METHODS, Limits, Method, gate_rows, verdict
from flawscope.calibration.quantization.modelopt import PYTHON
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.export.triton import TritonOptions, TritonRecord, bundle_of, is_run, write_triton
from flawscope.runs import SYNTHESIS_KINDS, run_kind
from flawscope.terminal import command_line, progress_bars

_TRITON = TritonOptions()
_LOWER = ("fp16", "int8")
_OPTIONS_OF = {
    "calibration_data": _LOWER,
    "labelled_data": _LOWER,
    "category": _LOWER,
    "calibration_method": ("int8",),
    "int8_rest": ("int8",),
    "modelopt_python": _LOWER,
    "max_auroc_change": _LOWER,
    "min_spearman": _LOWER,
    "max_false_rejects": _LOWER,
    "max_score_change": _LOWER,
}
"""Option -> the precisions that it is for."""
_KEPT_SHOWN = 5
"""Kinds of runs that draw defects, by name alone: what reads them needs torch."""


def _limit_help(name: str) -> str:
    values = ", ".join(f"{getattr(limits, name):g} {precision}" for precision, limits in LIMITS.items())
    return f"fp16, int8: gate.  [default: {values}]"


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Bundle folder (NAME.flaw) or repository.  [required]")
@click.option(
    "--max-batch",
    type=int,
    default=8,
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
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="fp16, int8: graphs in fewer bits beside those in FP32, if they pass the gate; may be repeated. triton: the "
    "one that is served.  [default: fp32]",
)
@click.option(
    "--calibration-data", type=click.Path(path_type=Path), help="fp16, int8: dataset for value ranges and the gate."
)
@click.option(
    "--labelled-data", type=click.Path(path_type=Path), help="fp16, int8: dataset whose test pictures are gated too."
)
@click.option("--category", metavar="NAME", help="fp16, int8: category below the datasets' folders.")
@click.option(
    "--calibration-method", type=click.Choice(METHODS), default="percentile", show_default=True, help="int8: ranges by."
)
@click.option(
    "--int8-rest",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="int8: what operators compute in that are not in INT8.",
)
@click.option(
    "--modelopt-python",
    type=click.Path(path_type=Path),
    help=f"fp16: Python interpreter with nvidia-modelopt[onnx].  [default: {PYTHON}, or this one]",
)
@click.option("--max-auroc-change", type=float, help=_limit_help("image_auroc"))
@click.option("--min-spearman", type=float, help=_limit_help("spearman"))
@click.option("--max-false-rejects", type=float, help=_limit_help("false_rejects"))
@click.option("--max-score-change", type=float, help=_limit_help("score_error"))
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
@click.option(
    "--explain",
    is_flag=True,
    help="Write nothing; find the first tensor on which two ways of computing disagree. A run: torch and its graph. "
    "RUN may be a bundle: its FP32 graph and --against.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="BACKEND[:PRECISION]",
    help="explain: plain (the CPU without graph optimisation), cpu:int8, cpu:fp16, cuda, ...; may be repeated.  "
    "[default: all that the bundle and this machine have]",
)
@click.option(
    "--tolerance",
    type=float,
    help="explain: largest RMS difference, relative to the tensor.  [default: 1e-4 fp32, 1e-2 fp16, 1e-1 int8]",
)
def export(
    run: Path,
    out: Path | None,
    max_batch: int,
    base: Path | None,
    embeddings: tuple[str, ...],
    precisions: tuple[str, ...],
    calibration_data: Path | None,
    labelled_data: Path | None,
    category: str | None,
    calibration_method: Method,
    int8_rest: Literal["fp32", "fp16"],
    modelopt_python: Path | None,
    max_auroc_change: float | None,
    min_spearman: float | None,
    max_false_rejects: float | None,
    max_score_change: float | None,
    layout: str,
    model_name: str | None,
    device: Literal["cpu", "gpu"],
    instances: int,
    queue_delay_us: int,
    preferred_batch: tuple[int, ...],
    explain: bool,
    against: tuple[str, ...],
    tolerance: float | None,
) -> int:
    """Turn a training run into a bundle that needs no PyTorch, or into a model for Triton.

    The bundle is written only if every tensor is proven to fit and torch, graph and native path agree on real pictures.
    RUN may be one of embedding, inpainting or base, or a Stable Diffusion folder: the bundle then draws defects.
    """
    if draws_defects(run):
        return _export_synthesis(run, out, base, embeddings, precisions, modelopt_python, layout)
    for name in ("base", "embeddings"):
        if _given(name):
            raise ArgumentError(
                f"--{name.rstrip('s')}: expected it with a run of embedding, inpainting or base, got it with {run}. "
                "Leave it out."
            )
    if explain:
        return _explain(run, against, tolerance)
    if out is None:
        raise click.MissingParameter(param_hint="'--out'", param_type="option")
    for name in ("against", "tolerance"):
        if _given(name):
            raise ArgumentError(f"--{name}: expected it with --explain, got it without. Leave it out.")
    _check_format(run, layout)
    lower = tuple(dict.fromkeys(name for name in precisions if name != "fp32"))
    _check_precisions(run, lower, calibration_data, layout)
    data = _Data(calibration_data, labelled_data, category)
    limits = {
        name: _limits_of(LIMITS[name], max_auroc_change, min_spearman, max_false_rejects, max_score_change)
        for name in lower
    }

    def write(target: Path) -> Manifest:
        made = _Making(lower, calibration_method, limits, int8_rest, modelopt_python)
        return _export_bundle(run, target, max_batch, data, made)

    if layout == "bundle":
        show_export(write(out), out)
        return 0
    served = lower[0] if lower else "fp32"
    options = TritonOptions(model_name, device, instances, queue_delay_us, preferred_batch, served)
    with bundle_of(run, lambda target: show_export(write(target), None)) as bundle:
        record = write_triton(bundle, out, options)
    show_triton(record, out)
    return 0


def draws_defects(source: Path) -> bool:
    """Return whether `source` is a run of embedding, inpainting or base, or the folder of a model as diffusers has it.

    A run that cannot be read is one of a detector: its reader says what is wrong.
    """
    if not is_run(source):
        return (source / "unet").is_dir() and not (source / "manifest.json").exists()
    return run_kind(source) in SYNTHESIS_KINDS


def _export_synthesis(
    source: Path,
    out: Path | None,
    base: Path | None,
    embeddings: tuple[str, ...],
    precisions: tuple[str, ...],
    modelopt_python: Path | None,
    layout: str,
) -> int:
    """Export what draws defects; options that are for what scores would have no effect and are refused."""
    wanted = tuple(name for name in dict.fromkeys(precisions) if name != "fp32")
    allowed = {"run", "out", "max_batch", "base", "embeddings", "precisions"}
    allowed |= {"modelopt_python"} if wanted else set()
    allowed |= {"layout"} if layout == "bundle" else set()
    for parameter in click.get_current_context().command.params:
        if parameter.name not in allowed and _given(parameter.name or ""):
            raise ArgumentError(
                f"{parameter.opts[0]}: expected no such option with {source}, which draws defects and does not score, "
                "got it. Leave it out."
            )
    if out is None:
        raise click.MissingParameter(param_hint="'--out'", param_type="option")
    words = [_parse_embedding(text) for text in embeddings]
    try:
        from flawscope.export.synthesis.generator_export import export_synthesis
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    most = click.get_current_context().params["max_batch"] if _given("max_batch") else None
    with progress_bars() as progress:
        manifest = export_synthesis(
            source,
            out,
            base=base,
            embeddings=words,
            max_batch=most,
            precisions=wanted,
            modelopt_python=modelopt_python,
            command=command_line(),
            progress=progress,
        )
    show_synthesis(manifest, out)
    return 0


def _parse_embedding(text: str) -> tuple[str, Path]:
    name, is_there, file = text.partition("=")
    if not name or not is_there or not file:
        raise ArgumentError(f"--embedding: expected DEFECT=FILE or CATEGORY/DEFECT=FILE, got {text!r}.")
    return name, Path(file)


def _explain(source: Path, against: tuple[str, ...], tolerance: float | None) -> int:
    """Print where two ways of computing part; exit status 1 if they do."""
    allowed = {"run", "explain", "against", "tolerance"}
    for parameter in click.get_current_context().command.params:
        name = parameter.name or ""
        if name not in allowed and _given(name):
            raise ArgumentError(f"{parameter.opts[0]}: expected no such option with --explain, got it. Leave it out.")
    try:
        from flawscope.export.explain_sources import explain_source, lines_of
    except ModuleNotFoundError as err:
        raise MissingExtra("explaining differences", str(err.name), "export") from err
    with progress_bars() as progress:
        found = explain_source(source, against, tolerance, progress)
    for one in found:
        for line in lines_of(one):
            click.echo(line)
    return int(any(one.first is not None for one in found))


def _check_format(run: Path, layout: str) -> None:
    """Refuse options that would have no effect."""
    names = ("model_name", "device", "instances", "queue_delay_us", "preferred_batch", "max_batch")
    given = [f"--{name.replace('_', '-')}" for name in names if _given(name)]
    idle = [name for name in given if name != "--max-batch"] if layout == "bundle" else []
    if idle:
        raise ArgumentError(f"{idle[0]}: expected it with --format triton, got it with --format bundle. Leave it out.")
    if layout == "triton" and "--max-batch" in given and not is_run(run):
        raise ArgumentError(
            f"--max-batch: expected it with a run, got it with {run}. A bundle's graphs have their largest batch: "
            "leave it out, or export the run again."
        )


class _Data(NamedTuple):
    """From what precisions are made and judged."""

    calibration: Path | None
    labelled: Path | None
    category: str | None


class _Making(NamedTuple):
    """How precisions are made and judged."""

    precisions: tuple[str, ...]
    method: Method
    limits: dict[str, Limits]
    int8_rest: Literal["fp32", "fp16"]
    modelopt_python: Path | None


def _limits_of(
    default: Limits, auroc: float | None, spearman: float | None, false_rejects: float | None, score: float | None
) -> Limits:
    """Return the limits that were given, and the default ones where none was."""
    return Limits(
        default.image_auroc if auroc is None else auroc,
        default.pixel_auroc if auroc is None else auroc,
        default.spearman if spearman is None else spearman,
        default.false_rejects if false_rejects is None else false_rejects,
        default.score_error if score is None else score,
    )


def _check_precisions(run: Path, lower: tuple[str, ...], calibration_data: Path | None, layout: str) -> None:
    """Refuse a lower precision without pictures, and options of one without it."""
    if layout == "triton" and len(lower) > 1:
        raise ArgumentError(
            f"--precision: expected one that Triton serves, got {' and '.join(lower)}. Export a model for each."
        )
    for name, needed in _OPTIONS_OF.items():
        if _given(name) and not set(needed) & set(lower):
            flags = " or ".join(f"--precision {precision}" for precision in needed)
            raise ArgumentError(f"--{name.replace('_', '-')}: expected it with {flags}, got it without. Leave it out.")
    if lower and calibration_data is None and (layout == "bundle" or is_run(run)):
        raise ArgumentError(
            f"--precision {lower[0]}: expected --calibration-data ROOT with good pictures, got none. Name the dataset "
            "that the detector was trained on."
        )


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not ParameterSource.DEFAULT


def _export_bundle(run: Path, out: Path, max_batch: int, data: _Data, making: _Making) -> Manifest:
    try:
        from flawscope.export.detectors.detector_export import export_run
        from flawscope.export.precisions import PrecisionRefused, Wanted
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    wanted = None
    if data.calibration is not None and making.precisions:
        wanted = Wanted(
            making.precisions,
            open_dataset(data.calibration, data.category),
            None if data.labelled is None else open_dataset(data.labelled, data.category),
            making.method,
            making.limits,
            making.int8_rest,
            making.modelopt_python,
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


def show_synthesis(manifest: Manifest, out: Path) -> None:
    """Print what was exported that draws defects: sizes, parity, what it draws, and where it is."""
    head = manifest.head
    assert isinstance(head, SynthHead)
    _show_graphs(manifest)
    for row in head.parity:
        click.echo(
            f"parity {row.candidate} against {row.reference}, {row.images} pictures in {row.steps} steps: "
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
            f"parity {row.candidate} against {row.reference}, {row.images} pictures: "
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
