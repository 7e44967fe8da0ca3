"""`flawscope bundle info|verify|pack`; `bundle combine` is in `flawscope.calibration`, which can measure."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.bundle import EnsembleHead, EnsembleMember, Manifest, SynthHead, open_bundle, pack_bundle
from flawscope.bundle.manifest import Threshold
from flawscope.errors import BundleError, GateError
from flawscope.imaging.tiles import Tiling
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo, echo_json

_BUNDLE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))


@click.command()
@_BUNDLE
@click.option("--json", "as_json", is_flag=True, help="Print the whole manifest as JSON.")
def info(path: Path, as_json: bool) -> None:
    """Show the contents of a bundle's manifest."""
    # Opening checks all hashes, so a changed bundle is not shown at all.
    with open_bundle(path) as opened:
        manifest = opened.manifest
    if as_json:
        echo_json(manifest, indent=1)
        return
    for label, text in _facts(manifest):
        echo(f"{label:<14} {text}")


def _tiles(tiling: Tiling) -> str:
    return f"{tiling.size[1]}x{tiling.size[0]} px of the image, neighbours share at least {tiling.overlap:.0%}"


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    source = manifest.provenance
    height, width = manifest.input.size
    size = sum(entry.size for entry in manifest.files.values())
    if isinstance(manifest.head, EnsembleHead):  # an ensemble has members in place of a seed and a backbone
        made_of = [
            ("method", f"{manifest.method}, category {source.category}"),
            *(("member", _member(entry)) for entry in manifest.head.members),
            ("measured", f"centers and spreads on {manifest.head.images} normal images that no member was trained on"),
        ]
    else:
        made_of = [
            ("method", f"{manifest.method}, seed {source.seed}, category {source.category}"),
            ("backbone", source.weights),
        ]
    facts = [
        ("name", manifest.name),
        ("identity", manifest.digest),
        *made_of,
        ("input", f"{width}x{height} px, batches up to {manifest.max_batch}"),
        *([] if manifest.tiling is None else [("tiles", _tiles(manifest.tiling))]),
        ("files", f"{len(manifest.files)}, {size / 2**20:.1f} MiB"),
        ("made", f"{source.created} by flawscope {manifest.flawscope}: {source.command or 'Python'}"),
    ]
    facts += [
        (f"graph {name}", f"largest tensor {graph.largest_elements:,} elements, about {graph.peak_bytes >> 20} MiB")
        for name, graph in sorted(manifest.graphs.items())
    ]
    if isinstance(manifest.head, SynthHead):  # it draws: its own fields stand where thresholds would
        # A generator scores nothing, so it has no thresholds.
        facts += _drawing(manifest.head)
    elif manifest.thresholds is None:
        facts.append(("thresholds", "none: run flawscope calibrate"))
    else:
        facts += [
            ("image", _threshold(manifest.thresholds.image)),
            ("pixel", _threshold(manifest.thresholds.pixel)),
        ]
    facts += [
        ("changed", f"{change.when} {change.name}: {_number(change.old)} -> {change.new:.6g} by {change.command}")
        for change in manifest.threshold_changes
    ]
    facts += [
        ("parity", f"{row.candidate} against {row.reference}: {row.score_max_relative:.1e} on {row.images} images")
        for row in manifest.evidence.parity
    ]
    facts += [
        ("accuracy", f"{row.when} {row.backend}: " + ", ".join(f"{k} {_number(v)}" for k, v in row.figures.items()))
        for row in manifest.evidence.accuracy
    ]
    return facts


def _drawing(head: SynthHead) -> list[tuple[str, str]]:
    """Return the manifest facts of a generator bundle."""
    sampling, (channels, height, width) = head.sampling, head.latents
    window = f"the window around a box, at most {head.crop_fill:.0%} of it" if head.crop else "the whole image"
    return [
        ("draws", f"{head.mode}, {sampling.steps} steps, guidance {head.guidance:g}, {window}"),
        ("latents", f"{channels} channels of {width}x{height}"),
        ("licence", head.licence),
        *(("defect", f"{defect.category}/{defect.name}: {_texts(defect.texts)}") for defect in head.defects),
        ("support", f"{len(head.support)} images that it was trained on"),
        *(
            (
                "parity",
                f"{row.candidate} against {row.reference}: at least {row.psnr_db:.1f} dB on {row.images} images in "
                f"{row.steps} steps",
            )
            for row in head.parity
        ),
    ]


def _texts(texts: tuple[str, ...]) -> str:
    rest = f" and {len(texts) - 1} more texts" if len(texts) > 1 else ""
    return f"{texts[0]!r}{rest}"


def _member(entry: EnsembleMember) -> str:
    return (
        f"{entry.name} ({entry.method}, {entry.digest[:12]}): weight {entry.weight:g}, map center "
        f"{entry.map_center:.4g} spread {entry.map_spread:.4g}, score center {entry.score_center:.4g} spread "
        f"{entry.score_spread:.4g}"
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _threshold(threshold: Threshold) -> str:
    text = f"{threshold.value:.6g} ({threshold.method}"
    if threshold.images:
        text += f" on {threshold.images} images"
    if threshold.upper_bound is not None and threshold.confidence is not None:
        text += f", false rejects at most {threshold.upper_bound:.2%} with {threshold.confidence:.0%} confidence"
    return text + ")"


@click.command()
@_BUNDLE
def verify(path: Path) -> None:
    """Check every hash of a bundle. Exit status 1 if something was changed, 2 if there is no bundle."""
    if not path.exists():
        raise BundleError(f"{path}: expected a bundle, got no such file or folder.")
    try:
        with open_bundle(path) as opened:
            # Opening checks hashes alone; this reads the memory bank too, for NaN and foreign types.
            opened.tensors()
            manifest = opened.manifest
    except BundleError as err:
        # A changed bundle is the answer of a check (status 1), not a wrong request (status 2).
        raise GateError(str(err)) from err
    echo(f"{path}: {len(manifest.files)} files are as listed, identity {manifest.digest}")


@click.command()
@_BUNDLE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@OVERWRITE
def pack(path: Path, out: Path, overwrite: bool) -> None:
    """Write a bundle folder as one uncompressed file."""
    with open_bundle(path) as opened:
        pack_bundle(opened, out, overwrite=overwrite)
    echo(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
