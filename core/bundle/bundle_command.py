"""`flawscope bundle info|verify|pack`; `bundle combine` is in `flawscope.calibration`, which can measure.

None of them runs the bundle, so they open those too that no trusted key has signed.
"""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.bundle import Bundle, EnsembleHead, EnsembleMember, Manifest, SynthHead, open_bundle, pack_bundle
from flawscope.bundle.ed25519 import read_public_keys
from flawscope.bundle.threshold_facts import thresholds_facts
from flawscope.bundle.threshold_overlay import find_overlay, read_overlay
from flawscope.bundle.trust import check_signed_by, signature_of
from flawscope.bundle.trusted_keys import find_trusted_keys
from flawscope.bundle.upkeep import Upkeep
from flawscope.bundle.zones import describe_zones
from flawscope.drawn_check import describe_check
from flawscope.errors import BundleError, GateError
from flawscope.imaging.learned_images import describe_learned
from flawscope.imaging.tiles import Tiling
from flawscope.learned_defects import describe_defects
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo, echo_json

_BUNDLE = click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))


@click.command()
@_BUNDLE
@click.option("--json", "as_json", is_flag=True, help="Print the whole manifest as JSON.")
def info(path: Path, as_json: bool) -> None:
    """Show the contents of a bundle's manifest."""
    # Opening checks all hashes, so a changed bundle is not shown at all.
    with open_bundle(path, check_signature=False) as opened:
        manifest, signature = opened.manifest, _signed_by(opened)
    if as_json:
        echo_json(manifest, indent=1)
        return
    for label, text in (*_facts(manifest, signature), *_overlay(path, manifest)):
        echo(f"{label:<14} {text}")


def _overlay(path: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Return the revisions of the threshold overlay beside a bundle, or what is wrong with it."""
    try:
        place = find_overlay(path)
        revisions = () if place is None else read_overlay(place, path, manifest).revisions
    except BundleError as err:
        return [("overlay", f"not usable: {err}")]
    return [
        (
            "overlay",
            f"{row.when} revision {row.revision} {row.precision}: image {row.image:.6g}, pixel {row.pixel:.6g}, by "
            f"{row.by}: {row.why}",
        )
        for row in revisions
    ]


def _signed_by(bundle: Bundle) -> str:
    found = signature_of(bundle.signature_bytes, bundle.manifest.digest, str(bundle.path))
    return "unsigned" if found is None else f"says {found.key} (check it with flawscope bundle verify)"


def _input(manifest: Manifest) -> str:
    spec = manifest.input
    parts = [f"{spec.size[1]}x{spec.size[0]} px"]
    if spec.mode != "stretch":
        parts.append(spec.mode)
    if spec.bits is not None:
        parts.append(f"{spec.bits} of 16 bits in use")
    return ", ".join([*parts, f"batches up to {manifest.max_batch}"])


def _tiles(tiling: Tiling) -> str:
    return f"{tiling.size[1]}x{tiling.size[0]} px of the image, neighbours share at least {tiling.overlap:.0%}"


def _facts(manifest: Manifest, signature: str) -> list[tuple[str, str]]:
    source = manifest.provenance
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
            *(_named_line(line) for line in source.conditions),
        ]
    facts = [
        ("name", manifest.name),
        ("identity", manifest.digest),
        ("signature", signature),
        *made_of,
        ("input", _input(manifest)),
        *([] if manifest.tiling is None else [("tiles", _tiles(manifest.tiling))]),
        *([] if manifest.learned is None else [("learned from", describe_learned(manifest.learned))]),
        *([] if (defects := manifest.learned_defects) is None else [("labelled defects", describe_defects(defects))]),
        *([] if manifest.region is None else [("region", manifest.region.line)]),
        *([] if manifest.drawn_zones is None else [("zones", describe_zones(manifest.drawn_zones))]),
        *([] if manifest.upkeep is None else _bank(manifest.upkeep)),
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
        facts += thresholds_facts(manifest.thresholds)
    facts += [
        ("changed", f"{change.when} {change.what}: {_number(change.old)} -> {change.new:.6g} by {change.command}")
        for change in manifest.threshold_changes
    ]
    facts += [
        ("parity", f"{row.candidate} against {row.reference}: {row.score_max_relative:.1e} on {row.images} images")
        for row in manifest.evidence.parity
    ]
    if manifest.evidence.drawn is not None:
        facts.append(("drawn defects", describe_check(manifest.evidence.drawn)))
    facts += [
        ("accuracy", f"{row.when} {row.backend}: " + ", ".join(f"{k} {_number(v)}" for k, v in row.figures.items()))
        for row in manifest.evidence.accuracy
    ]
    facts += [
        (
            "drift",
            f"{row.backend} from {drift.against} of {drift.when}: "
            + ", ".join(f"{name} {change:+.4g}" for name, change in drift.changes.items()),
        )
        for row in manifest.evidence.accuracy
        for drift in row.drift
    ]
    return facts


def _bank(upkeep: Upkeep) -> list[tuple[str, str]]:
    """Return the manifest facts of a memory bank that can be changed."""
    facts = [("bank", f"{_counts(upkeep.rows)} rows, room for {_counts(upkeep.room)} more")]
    for change in upkeep.changes:
        images = f" {change.images} images," if change.images else ""
        text = f"{change.when} {change.what}{images} {_counts(change.rows)} rows since, by {change.command or 'Python'}"
        facts.append((f"change {change.number}", text))
    return facts


def _counts(rows: tuple[int, ...]) -> str:
    return " and ".join(f"{count:,}" for count in rows)


def _named_line(line: str) -> tuple[str, str]:
    """Return a line such as `weights: mean 0.5` as its name and the rest."""
    name, _, rest = line.partition(": ")
    return name, rest


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


@click.command()
@_BUNDLE
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Public keys; one of them must have signed.  [default: the keys that are trusted here, if any]",
)
def verify(path: Path, key_file: Path | None) -> None:
    """Check every hash of a bundle, and its signature.

    Exit status 1 if something was changed or the signature is missing or wrong, 2 if there is no bundle. Without --key
    and trusted keys a bundle needs no signature.
    """
    if not path.exists():
        raise BundleError(f"{path}: expected a bundle, got no such file or folder.")
    if key_file is not None:
        keys = {key.id: key for key in read_public_keys(key_file)}
    else:
        trusted = find_trusted_keys()
        keys = {} if trusted is None else trusted.keys
    try:
        with open_bundle(path, check_signature=False) as opened:
            # Opening checks hashes alone; this reads the memory bank too, for NaN and foreign types.
            opened.tensors()
            manifest, signature = opened.manifest, opened.signature_bytes
        if keys:
            signer = check_signed_by(opened.manifest_bytes, manifest.digest, signature, str(path), keys)
            signed = f"signed by {signer}"
        else:
            found = signature_of(signature, manifest.digest, str(path))
            signed = "unsigned" if found is None else f"signature of {found.key} not checked: name its key with --key"
    except BundleError as err:
        # A changed bundle is the answer of a check (status 1), not a wrong request (status 2).
        raise GateError(str(err)) from err
    echo(f"{path}: {len(manifest.files)} files are as listed, identity {manifest.digest}, {signed}")


@click.command()
@_BUNDLE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@OVERWRITE
def pack(path: Path, out: Path, overwrite: bool) -> None:
    """Write a bundle folder as one uncompressed file."""
    with open_bundle(path, check_signature=False) as opened:
        pack_bundle(opened, out, overwrite=overwrite)
    if (overlay := find_overlay(path)) is not None:
        echo(f"note: the thresholds of {overlay} are not part of the packed bundle.", err=True)
    echo(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
