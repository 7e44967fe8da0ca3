"""Ensembles of bundles: checks that members are compatible, and writes them as one bundle.

See `ensemble_scales` for how their maps and scores are made comparable.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import flawscope
from flawscope.bundle import (
    IMAGE_HASHES,
    MANIFEST,
    Bundle,
    EnsembleHead,
    EnsembleMember,
    Golden,
    ImageHashes,
    Manifest,
    Provenance,
    making,
    open_bundle,
    read_image_hashes,
    rewrite_manifest,
    write_bundle,
)
from flawscope.calibration.thresholds.ensemble_scales import MAP_QUANTILE, SCORE_QUANTILE, Scale, measure_member_scales
from flawscope.datasets import Dataset, Sample, as_recorded, fingerprint, hash_contents
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable, temporary_folder
from flawscope.imaging.images import decode_image, prepare
from flawscope.imaging.learned_images import merge_learned
from flawscope.progress import Progress, no_progress
from flawscope.versions import package_versions

if TYPE_CHECKING:
    from flawscope.runtime import Inspector

LEAST_GOOD = 5
"""Least number of normal images from which a spread is measured."""

_GOLDEN = 2
"""Golden images of the ensemble; every member checks its own as well."""


@dataclass(frozen=True)
class Combination:
    """An ensemble that was written.

    Attributes:
        manifest: The manifest of the ensemble as written.
        backend: The backend that the scales were measured on.
        left_out: Reasons why normal images were not used, each with the number of them.
        notes: What the user has to know, a sentence each.
    """

    manifest: Manifest
    backend: str
    left_out: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


@making()
def combine_bundles(
    paths: Sequence[Path],
    out: Path,
    dataset: Dataset,
    *,
    weights: Sequence[float] | None = None,
    backend: str = "auto",
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> Combination:
    """Write an ensemble of bundles; it has no thresholds until it is calibrated.

    Args:
        paths: The bundles, folders or packed; their graphs in FP32 are combined.
        out: Bundle folder to write.
        dataset: Its train/good, without the images that a member has learned from, gives centers and spreads.
        weights: One a bundle, above 0; None for 1 each.
        backend: The backend that measures the scales.
        command: The command line, for the record.
        progress: Called after each image.
        overwrite: Whether an earlier bundle there may be replaced.

    Raises:
        ArgumentError: If a weight is wrong, bundles are not compatible, or `out` is taken or lies in one of them.
        BundleError: If a bundle is broken.
        DataError: If fewer than `LEAST_GOOD` images remain, an image cannot be scored, or a member does not vary.
        StorageError: If the ensemble cannot be written.
    """
    shares = _checked_weights(paths, weights)
    # `out` replaces what is there: inside a member it would delete the files that are being copied.
    for path in paths:
        if path.exists() and out.resolve().is_relative_to(path.resolve()):
            raise ArgumentError(f"{out}: expected a place outside the bundles, got one in {path}. Choose another name.")
    check_replaceable(out, "manifest.json", overwrite=overwrite)
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in paths]
        _check_together(bundles)
        chosen = _choose(dataset, [read_image_hashes(bundle) for bundle in bundles], progress)
        inspectors = [stack.enter_context(_loaded(bundles[0], backend))]
        # All on one backend, as they will be in the ensemble: `auto` might take another one for each.
        inspectors += [stack.enter_context(_loaded(bundle, inspectors[0].backend)) for bundle in bundles[1:]]
        scales = measure_member_scales(inspectors, chosen.samples, progress)
        members = _members(bundles, shares, scales)
        measured_on = inspectors[0].backend
        manifest = Manifest(
            name=out.name.removesuffix(".flaw"),
            kind="score",
            method="ensemble",
            flawscope=flawscope.__version__,
            input=bundles[0].manifest.input,
            tiling=bundles[0].manifest.tiling,
            learned=merge_learned([bundle.manifest.learned for bundle in bundles]),
            # Every member's graphs get the same batch; larger ones would pass the proof of one member's tensor sizes.
            max_batch=min(bundle.manifest.max_batch for bundle in bundles),
            graphs={},
            bank=None,
            head=EnsembleHead(members, len(chosen.samples)),
            golden=(),
            provenance=_provenance(bundles, members, dataset, chosen, measured_on, command),
            files={},
            # The least of all members: a region that one of them would draw is not too small for the ensemble.
            min_area_px=min(bundle.manifest.min_area_px for bundle in bundles),
        )
        sources = _sources(bundles, members, chosen.hashes)
        written = _write(out, manifest, sources, _golden_files(bundles, members), progress, overwrite)
    return Combination(written, measured_on, chosen.left_out, _notes(bundles, dataset))


def _checked_weights(paths: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    if not paths:
        raise ArgumentError("combine: expected bundles, got none.")
    shares = [1.0] * len(paths) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(paths):
        raise ArgumentError(f"weights: expected one for each of {len(paths)} bundles, got {len(shares)}.")
    for weight in shares:
        if not (math.isfinite(weight) and weight > 0):
            raise ArgumentError(f"weights: expected numbers above 0, got {weight:g}. Leave out what shall not count.")
    return shares


def _loaded(bundle: Bundle, backend: str, path: str = "auto", *, is_candidate: bool = False) -> Inspector:
    from flawscope.runtime import Inspector  # brings ONNX Runtime, which --help does without

    # Scores of members are combined, whatever their thresholds.
    return Inspector(bundle, backend, path, is_candidate=is_candidate, use_overlay=False)


def _check_together(bundles: Sequence[Bundle]) -> None:
    """Raise ArgumentError unless the bundles are compatible."""
    first = bundles[0]
    seen: dict[str, Bundle] = {}
    for bundle in bundles:
        manifest = bundle.manifest
        if manifest.head.members:
            raise ArgumentError(
                f"{bundle.path}: expected a bundle of one detector, got an ensemble. Combine all its members at once."
            )
        if manifest.kind != "score":
            raise ArgumentError(
                f"{bundle.path}: expected a bundle of a detector, got one that draws defects. Leave it out."
            )
        if manifest.region is not None or manifest.drawn_zones is not None:
            what = "a region of interest" if manifest.region is not None else "zones"
            raise ArgumentError(
                f"{bundle.path}: expected a bundle in which defects count everywhere, alike, got one with {what}. "
                "Remove that with flawscope bundle region --clear, and draw it on the ensemble."
            )
        # An image is prepared once for all members, so their maps lie on the same pixels.
        for setting, got, expected in (
            ("preprocessing", _as_text(manifest.input), _as_text(first.manifest.input)),
            ("tiles", _as_text(manifest.tiling), _as_text(first.manifest.tiling)),
        ):
            if got != expected:
                raise ArgumentError(
                    f"{bundle.path}: expected the {setting} of {first.path} ({expected}), got {got}. Train both with "
                    "the same settings for images."
                )
        if manifest.digest in seen:
            raise ArgumentError(
                f"{bundle.path}: expected another bundle, got the one of {seen[manifest.digest].path} once more. Give "
                "it a larger weight instead."
            )
        seen[manifest.digest] = bundle


def _as_text(value: msgspec.Struct | None) -> str:
    """Return the fields of settings as text, for comparison and for messages."""
    if value is None:
        return "none"
    parts = msgspec.to_builtins(value)
    return ", ".join(f"{name} {list(part) if isinstance(part, tuple) else part}" for name, part in parts.items())


@dataclass(frozen=True)
class _Chosen:
    """Normal images that no member has learned from, why others were left out, and hashes for the ensemble."""

    samples: tuple[Sample, ...]
    left_out: tuple[tuple[str, int], ...]
    hashes: ImageHashes
    dataset: str


def _choose(dataset: Dataset, hashes: Sequence[ImageHashes], progress: Progress) -> _Chosen:
    pixels = hash_contents(
        [sample.path for sample in dataset.samples], lambda done, total: progress("Comparing images", done, total)
    )
    seen = {content for member in hashes for content in member.seen}
    contents = as_recorded(pixels, seen)
    # dict, not set: its order does not change from run to run, so the same members give the same bundle.
    training = dict.fromkeys(content for member in hashes for content in member.training)
    samples: dict[str, Sample] = {}
    reasons = Counter[str]()
    candidates = dataset.train_good
    for sample in candidates:
        content = contents[sample.path]
        if content in seen:
            reasons["learned by a member"] += 1
        elif content in samples:
            reasons["copies of another image: they are not independent"] += 1
        else:
            samples[content] = sample
    if len(samples) < LEAST_GOOD:
        raise DataError(
            f"{dataset.root}: expected at least {LEAST_GOOD} normal images that no member has learned from, got "
            f"{len(samples)} among {len(candidates)}. Train all members with one --seed and keep images out "
            "(--set held_out=0.2), or name another set."
        )
    # The images that gave the scales are listed as held out, so that `evaluate` notes when they are in a test set. What
    # is held out for one member may be training for another, which counts more.
    held_out_before = [content for member in hashes for content in member.held_out]
    recorded = as_recorded(pixels, held_out_before)
    unlearned = dict.fromkeys([*held_out_before, *(recorded[sample.path] for sample in samples.values())])
    held_out = tuple(content for content in unlearned if content not in training)
    defects = {content: why for member in hashes for content, why in member.defects.items()}
    return _Chosen(
        tuple(samples.values()),
        tuple(reasons.items()),
        ImageHashes(tuple(training), held_out, defects=defects),
        fingerprint(dataset, pixels),
    )


def _members(
    bundles: Sequence[Bundle], weights: Sequence[float], scales: Sequence[tuple[Scale, Scale]]
) -> tuple[EnsembleMember, ...]:
    members, names = [], set[str]()
    for bundle, weight, (of_map, of_score) in zip(bundles, weights, scales, strict=True):
        manifest = bundle.manifest
        name = _unique_name(manifest.name, manifest.method, names)
        members.append(
            EnsembleMember(
                name=name,
                digest=manifest.digest,
                method=manifest.method,
                weight=weight,
                map_center=of_map.center,
                map_spread=of_map.spread,
                score_center=of_score.center,
                score_spread=of_score.spread,
            )
        )
    return tuple(members)


def _unique_name(name: str, method: str, names: set[str]) -> str:
    """Return a folder name close to the bundle's name that is not in `names`, and add it there."""
    # A manifest's name comes from outside: as a folder it must hold no separator, and begin with no dot.
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:48] or method
    unique, count = plain, 1
    # Without case, because two names that differ in case alone are one folder on macOS and Windows.
    while unique.casefold() in names:
        count += 1
        unique = f"{plain}-{count}"
    names.add(unique.casefold())
    return unique


def _provenance(
    bundles: Sequence[Bundle],
    members: Sequence[EnsembleMember],
    dataset: Dataset,
    chosen: _Chosen,
    backend: str,
    command: str,
) -> Provenance:
    sources = [bundle.manifest.provenance for bundle in bundles]
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        # An ensemble has no run: the digest of its members' runs, in their order, takes its place.
        run=hashlib.sha256("".join(f"{source.run}\n" for source in sources).encode()).hexdigest(),
        dataset=chosen.dataset,
        category=dataset.category,
        seed=0,
        versions=package_versions(),
        config={
            "members": {
                member.name: {"bundle": bundle.path.name, "digest": member.digest, "method": member.method}
                for member, bundle in zip(members, bundles, strict=True)
            },
            "weights": {member.name: member.weight for member in members},
            "map_quantile": MAP_QUANTILE,
            "score_quantile": SCORE_QUANTILE,
            "backend": backend,
        },
        weights="; ".join(f"{member.name}: {source.weights}" for member, source in zip(members, sources, strict=True)),
        images=IMAGE_HASHES,
        conditions=tuple(
            f"{member.name}: {line}"
            for member, source in zip(members, sources, strict=True)
            for line in source.conditions
        ),
    )


def _sources(
    bundles: Sequence[Bundle], members: Sequence[EnsembleMember], hashes: ImageHashes
) -> dict[str, Path | bytes]:
    """Return every file of the ensemble: its members whole, each in its folder, and the hashes of their images."""
    sources: dict[str, Path | bytes] = {IMAGE_HASHES: hashes.encode()}
    for member, bundle in zip(members, bundles, strict=True):
        sources[f"{member.folder}/{MANIFEST}"] = bundle.manifest_bytes
        for name in bundle.manifest.files:
            sources[f"{member.folder}/{name}"] = bundle.read(name)
    return sources


def _golden_files(bundles: Sequence[Bundle], members: Sequence[EnsembleMember]) -> list[str]:
    """Return the paths of the first golden images of the members in the ensemble, equal images once."""
    by_hash: dict[str, str] = {}
    for member, bundle in zip(members, bundles, strict=True):
        for golden in bundle.manifest.golden:
            by_hash.setdefault(bundle.manifest.files[golden.file].sha256, f"{member.folder}/{golden.file}")
    return list(by_hash.values())[:_GOLDEN]


def _write(
    out: Path,
    manifest: Manifest,
    sources: dict[str, Path | bytes],
    golden: Sequence[str],
    progress: Progress,
    overwrite: bool,
) -> Manifest:
    """Write the ensemble to a scratch folder, compute its golden scores there, load it for a check, and copy it."""
    progress("Writing", 0, 3)
    # In the same folder, so on the same file system: a full disk shows before an older bundle is replaced.
    with temporary_folder(out.parent) as scratch:
        candidate = scratch / out.name
        bare = write_bundle(candidate, manifest, sources)
        progress("Writing", 1, 3)
        entries = []
        # On the CPU by the whole graphs, as at export: every other backend and path is compared with these scores.
        with open_bundle(candidate) as bundle, _loaded(bundle, "cpu", "graph", is_candidate=True) as inspector:
            for name in golden:
                maps, scores = inspector.infer(prepare(decode_image(bundle.read(name), name), manifest.input)[None])
                entries.append(Golden(name, float(scores[0]), float(maps[0].max())))
        rewrite_manifest(candidate, msgspec.structs.replace(bare, golden=tuple(entries)))
        with open_bundle(candidate) as bundle, _loaded(bundle, "cpu"):  # raises unless it reproduces the golden scores
            progress("Writing", 2, 3)
            files: dict[str, Path | bytes] = {name: bundle.read(name) for name in bundle.manifest.files}
            written = write_bundle(out, bundle.manifest, files, overwrite=overwrite)
    progress("Writing", 3, 3)
    return written


def _notes(bundles: Sequence[Bundle], dataset: Dataset) -> tuple[str, ...]:
    categories = {bundle.manifest.provenance.category for bundle in bundles} | {dataset.category}
    notes = []
    if len(categories) > 1:
        notes.append(
            f"Members and data have different categories ({', '.join(sorted(categories))}): expected one part."
        )
    if left := sorted({name for bundle in bundles for name in bundle.manifest.precisions}):
        notes.append(f"The ensemble computes in FP32; the members' graphs in {', '.join(left)} are carried along.")
    return tuple(notes)
