"""`flawscope export`."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.bundle import Manifest
from flawscope.errors import MissingExtra
from flawscope.terminal import command_line, progress_bars


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Bundle folder to write (NAME.flaw).")
@click.option("--max-batch", type=int, default=8, show_default=True, help="Largest batch the graphs take.")
def export(run: Path, out: Path, max_batch: int) -> None:
    """Turn a training run into a bundle that needs no PyTorch.

    The bundle is written only if every tensor is proven to fit and torch, graph and native path agree on real pictures.
    """
    try:
        from flawscope.export.exporting import export_run
    except ModuleNotFoundError as err:
        raise MissingExtra("exporting", str(err.name), "export") from err
    with progress_bars() as progress:
        manifest = export_run(run, out, max_batch=max_batch, command=command_line(), progress=progress)
    show_export(manifest, out)


def show_export(manifest: Manifest, out: Path) -> None:
    """Print what was exported: sizes and parity."""
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
    size = sum(entry.size for entry in manifest.files.values())
    click.echo(f"bundle: {out} ({size / 2**20:.1f} MiB), not calibrated yet")
