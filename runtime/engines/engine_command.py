"""`flawscope engine build|list|clear`: build, list and remove the TensorRT engines of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from flawscope.bundle import COMPUTED, PRECISIONS, Bundle, open_bundle
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.engines import (
    RUNTIMES,
    EngineCache,
    Stored,
    Target,
    TensorRT,
    current_target,
    import_tensorrt,
    named_target,
)
from flawscope.runtime.engines.ensure import Ensured, ensure_engine
from flawscope.runtime.engines.wanted_options import TF32_VARIABLE, graph_batches, wanted_options
from flawscope.terminal import echo, echo_json, progress_bars

_GRAPHS = ("auto", "features", "score", "text", "encode", "denoise", "decode", "compare")


_cache_option = click.option("--cache", type=click.Path(path_type=Path, file_okay=False), help="Folder of the engines.")


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", type=click.Choice(RUNTIMES), default="auto", show_default=True)
@click.option(
    "--graph",
    type=click.Choice(_GRAPHS),
    default="auto",
    show_default=True,
    help="auto: what backend tensorrt runs: features, or score, or each of a bundle with several.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--max-batch", type=int, help="Largest batch.  [default: the bundle's]")
@click.option("--opt-batch", type=int, help="Images at once that it is made fastest for.  [default: 1]")
@click.option("--workspace", type=int, metavar="MIB", help="Most device memory for scratch.  [default: TensorRT's]")
@click.option(
    "--tf32/--no-tf32",
    default=None,
    help=f"Products in TF32, less exact than FP32; the backend takes them with {TF32_VARIABLE}=1.  [default: no]",
)
@click.option("--target", metavar="CC", help="Compute capability, such as 8.9, of a GPU that is not here.")
@click.option("--no-build", is_flag=True, help="Only check whether an engine fits; if none does, say why and fail.")
@click.option("--force", is_flag=True, help="Build even if an engine fits.")
@_cache_option
@trusted_keys_option
def build(
    bundle: Path,
    runtime: str,
    graph: str,
    precision: str,
    max_batch: int | None,
    opt_batch: int | None,
    workspace: int | None,
    tf32: bool | None,
    target: str | None,
    no_build: bool,
    force: bool,
    cache: Path | None,
) -> None:
    """Build the engine of BUNDLE, unless the cache has one that matches exactly."""
    if no_build and force:
        raise click.UsageError("--no-build and --force exclude each other. Leave one out.")
    if precision in COMPUTED:  # networks are strongly typed: the engine would be that of FP32
        raise ArgumentError(
            f"--precision {precision}: expected one with graphs of its own, from which TensorRT takes it, got one that "
            "is computed from those of FP32. Take another --precision."
        )
    with open_bundle(bundle) as opened:
        tensorrt = import_tensorrt(runtime)
        device = _device(tensorrt, target)
        if max_batch is not None and not 1 <= max_batch <= opened.manifest.max_batch:
            raise ArgumentError(
                f"max-batch: expected 1 to {opened.manifest.max_batch}, which the bundle takes, got {max_batch}."
            )
        for part, name in _graphs(opened, graph, precision):
            # A member's engine is the same as that of its bundle alone: with the largest batch of that bundle, or
            # `open_engine` would not find it.
            options = wanted_options(
                part.manifest, name, opt_batch=opt_batch, max_batch=max_batch, workspace_mib=workspace, tf32=tf32
            )
            with progress_bars() as report:
                ensured = ensure_engine(
                    part,
                    name,
                    tensorrt,
                    device,
                    options,
                    EngineCache(cache),
                    precision=precision,
                    build=not no_build,
                    force=force,
                    any_tuning=opt_batch is None and workspace is None,
                    progress=_build_progress(report, name),
                )
            _show_engine(ensured)
            member = "" if part is opened else f"{part.manifest.name}, "
            echo(
                f"{member}graph {name}, {precision}, batch {options.min_batch} to {options.max_batch}, "
                f"{tensorrt.name} {tensorrt.version}, {device}"
            )
            if options.max_batch < graph_batches(part.manifest, name)[-1]:
                echo("backend tensorrt does not take it: the bundle's largest batch would not fit", err=True)


def _show_engine(ensured: Ensured) -> None:
    stored, entry = ensured.stored, ensured.stored.entry
    if entry is None:
        raise BackendError(f"engine: {stored.folder} has no entry. Clear the cache and build again.")
    for warning in entry.warnings if ensured.built_because else ():
        echo(f"warning: {warning}", err=True)
    if ensured.built_because is None:
        echo(f"engine fits: {stored.plan}")
    else:
        echo(f"built because {ensured.built_because}")
        echo(f"engine: {stored.plan} ({entry.size / 2**20:.1f} MiB, {entry.build_seconds:.1f} s)")
    if entry.layers_missing is not None:
        echo(f"no report of its layers: {entry.layers_missing}")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_cache_option
def list_engines(as_json: bool, cache: Path | None) -> int:
    """List the engines of this machine and check each file. Exit status 1 when one must not be used."""
    engine_cache = EngineCache(cache)
    engines = list(engine_cache.all())
    status = 1 if any(stored.problem for stored in engines) else 0
    if as_json:
        rows = [
            {"folder": str(stored.folder), "problem": stored.problem, "entry": msgspec.to_builtins(stored.entry)}
            for stored in engines
        ]
        echo_json(rows, indent=1)
        return status
    if not engines:
        echo(f"no engines in {engine_cache.root}")
        return 0
    echo(f"engines in {engine_cache.root}")
    for stored in engines:
        for line in _describe(stored):
            echo(line)
    return status


@click.command("clear")
@click.option("--bundle", "name", metavar="NAME", help="Only engines of this bundle.")
@click.option("--broken", is_flag=True, help="Only engines that must not be used.")
@_cache_option
def clear(name: str | None, broken: bool, cache: Path | None) -> None:
    """Remove engines from the cache; they are built again when they are needed."""
    engine_cache = EngineCache(cache)
    freed = count = 0
    for stored in engine_cache.all():
        # An engine without a readable entry belongs to no bundle that could be named; --broken removes it.
        if name is not None and (stored.entry is None or stored.entry.bundle != name):
            continue
        if broken and stored.problem is None:
            continue
        size = engine_cache.remove(stored)
        if size is not None:
            freed += size
            count += 1
    echo(f"removed {count} engines, {freed / 2**20:.1f} MiB, from {engine_cache.root}")


def _describe(stored: Stored) -> tuple[str, ...]:
    """Return two lines: what the engine is, and for which device. A table of this would not fit a terminal."""
    name = stored.folder.name[:12]
    if stored.entry is None:
        return (f"{name}  must not be used: {stored.problem}",)
    key, options = stored.entry.key, stored.entry.key.options
    state = "whole" if stored.problem is None else f"must not be used: {stored.problem}"
    return (
        f"{name}  {stored.entry.bundle}, graph {key.graph}, {key.precision}, batch {options.min_batch} to "
        f"{options.max_batch} (best at {options.opt_batch}), {stored.entry.size / 2**20:.1f} MiB, "
        f"{stored.entry.created[:10]}: {state}",
        f"{'':12}  {key.target}, {key.runtime} {key.version}",
    )


def _device(tensorrt: TensorRT, target: str | None) -> Target:
    """Return the device to build for: the one that was named, else this machine's GPU."""
    if target is not None:
        if not tensorrt.builds_for_absent_gpus:
            raise ArgumentError(
                f"target: {tensorrt.name} builds only for the GPU of this machine. Leave --target out, or use "
                "--runtime tensorrt-rtx."
            )
        return named_target(target, tensorrt.compute_capabilities())
    try:
        return current_target()
    except BackendError as err:
        if not tensorrt.builds_for_absent_gpus:
            raise
        capabilities = ", ".join(f"{major}.{minor}" for major, minor in tensorrt.compute_capabilities())
        raise BackendError(f"{err} To build for another machine's GPU, name it with --target: {capabilities}.") from err


def _graphs(bundle: Bundle, graph: str, precision: str) -> list[tuple[Bundle, str]]:
    """Return the graphs to build engines from, as bundle and name; for an ensemble, those of every member.

    Raises:
        ArgumentError: If the bundle lacks the precision.
        BundleError: If the bundle has no such graph.
    """
    names = bundle.manifest.graphs_of(precision)
    if members := bundle.manifest.head.members:
        return [part for member in members for part in _graphs(bundle.member(member.name), graph, precision)]
    if graph != "auto":
        bundle.graph_file(graph, precision)  # raises if the bundle lacks it
        return [(bundle, graph)]
    # `features` before `score`, as the backend `tensorrt` prefers the kernels where they compute the head; one of them
    # computes all of a bundle.
    # Reconstruction and generator bundles have neither, and need every graph.
    order = ("features", "score") if bundle.manifest.head.fits_device else ("score", "features")
    single = next((name for name in order if name in names), None)
    return [(bundle, name) for name in (sorted(names) if single is None else [single])]


def _build_progress(report: Callable[[str, int, int], None], name: str) -> Callable[[float, str], None]:
    """Return the progress callback of one graph."""
    started = time.perf_counter()
    return lambda share, phase: report(f"{name}: {_estimate(share, started, phase)}", round(100 * share), 100)


def _estimate(share: float, started: float, phase: str) -> str:
    """Return the phase with the remaining time, extrapolated from the share."""
    elapsed = time.perf_counter() - started
    if share < 0.05 or elapsed < 2.0:  # too early to extrapolate
        return phase
    return f"{phase}, about {elapsed * (1 - share) / share:.0f} s left"
