"""What the fields of a manifest must be to each other; ranges of single fields are in their structs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from flawscope.bundle.heads import head_tag
from flawscope.bundle.manifest import Manifest
from flawscope.errors import BundleError


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raise BundleError unless the parts of a manifest fit each other.

    Args:
        manifest: The manifest of a bundle, its files filled in.
        where: What the bundle is called in messages.
    """
    if problem := next(_problems(manifest), None):
        raise BundleError(f"{where}: the manifest is broken: {problem}. Export the bundle again.")


def _problems(manifest: Manifest) -> Iterator[str]:
    tag = head_tag(manifest.head)
    if (manifest.kind == "synth") != (tag == "synth"):
        yield f"expected a head of the kind {manifest.kind}, got {tag}"
    if manifest.kind == "score" and tag != manifest.method:
        yield f"expected a head of the method {manifest.method}, got {tag}"
    if manifest.tiling is not None and manifest.input.mode != "stretch":
        yield f"expected tiles to be stretched, got {manifest.input.mode}"
    yield from _files(manifest)
    yield from _limits(manifest)
    yield from _zones(manifest)
    yield from _upkeep(manifest)
    if problem := manifest.head.problem(manifest.input.size):
        yield problem


def _upkeep(manifest: Manifest) -> Iterator[str]:
    upkeep = manifest.upkeep
    if upkeep is None:
        return
    banks = manifest.head.banks
    if manifest.bank is None or not len(upkeep.rows) == len(upkeep.room) == banks:
        yield f"expected rows and room of {banks} memory banks, got {len(upkeep.rows)} and {len(upkeep.room)}"
    numbers = [change.number for change in upkeep.changes]
    if numbers != sorted(set(numbers)):
        yield f"expected rising numbers of changes, got {numbers}"
    if any(len(change.rows) != len(upkeep.rows) for change in upkeep.changes):
        yield "expected rows of every bank in each change, got others"


def _limits(manifest: Manifest) -> Iterator[str]:
    for precision in ("fp32", *manifest.precisions):
        thresholds = manifest.thresholds_of(precision)
        if thresholds is None or thresholds.limits is None:
            continue
        for name, threshold, limits in (
            ("image", thresholds.image, thresholds.limits.image),
            ("pixel", thresholds.pixel, thresholds.limits.pixel),
        ):
            if not limits.low <= threshold.value <= limits.high:
                yield (
                    f"expected the {name} threshold of {precision}, {threshold.value:g}, within its limits, got "
                    f"{limits.low:g} to {limits.high:g}"
                )


def _zones(manifest: Manifest) -> Iterator[str]:
    names = () if manifest.drawn_zones is None else manifest.drawn_zones.names
    if names and manifest.region is not None and manifest.region.followed is not None:
        yield "expected zones in a region that stays, got one that follows the part, which zones do not"
    for precision in ("fp32", *manifest.precisions):
        thresholds = manifest.thresholds_of(precision)
        if thresholds is None:
            continue
        # A zone without a threshold would never reject.
        if (got := tuple(zone.name for zone in thresholds.of_zones)) != names:
            yield f"expected thresholds of {precision} for the zones {_listed(names)}, got {_listed(got)}"
        if names and thresholds.image.value != 0.0:
            # On the largest score minus threshold: with another, figures would be of other decisions than results.
            got_image = f"{thresholds.image.value:g}"
            yield f"expected an image threshold of {precision} of 0, since the bundle has zones, got {got_image}"
        if names and thresholds.by_product:
            yield f"expected no thresholds of {precision} by product, since the bundle has zones"
        products = [row.name for row in thresholds.by_product]
        if len(set(products)) != len(products):
            yield f"expected thresholds of {precision} once for each product, got some twice"
        if names and thresholds.limits is not None:
            yield f"expected no limits of threshold overlays for {precision}, since it has zones"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _files(manifest: Manifest) -> Iterator[str]:
    for precision in ("fp32", *manifest.precisions):
        graphs = manifest.graphs_of(precision)
        named = [graph.file for graph in graphs.values()]
        if len(set(named)) != len(named):
            yield f"expected a file for every graph of {precision}, got one twice"
        own = {} if precision == "fp32" else manifest.precisions[precision].golden_by_backend
        golden = itertools.chain(manifest.golden_of(precision), *own.values())
        for name in itertools.chain(named, (entry.file for entry in golden)):
            if name not in manifest.files:
                yield f"it names {name} but does not list it"
    record = None if manifest.upkeep is None else manifest.upkeep.record
    for name in filter(None, (manifest.bank, manifest.provenance.images, record)):
        if name not in manifest.files:
            yield f"it names {name} but does not list it"
