"""The shift of a part: how exactly it is told, on what it is not, and what a shift costs a detector.

    python benchmarks/part_shift.py estimate --data CATEGORY [CATEGORY ...] --out FILE.json
    python benchmarks/part_shift.py cost --bundle BUNDLE [BUNDLE ...] --data CATEGORY --out FILE.json

`estimate`: normal images are moved by known whole pixels, then darkened or brightened unevenly, or covered by a defect
of a tenth of the image. The product's estimate and phase correlation (OpenCV, Hann window) against one reference each.
`cost`: test images are moved, their edge repeated, and inspected by exported bundles with thresholds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from result_file import machine

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.calibration.evaluation.metrics import auroc
from flawscope.datasets import open_dataset
from flawscope.datasets.seeded_split import in_seeded_order
from flawscope.files import write_text
from flawscope.imaging.images import read_image
from flawscope.imaging.part_reference import learn_reference
from flawscope.imaging.part_shift import SIDE, PartFinder, part_thumbnail, thumbnail_size
from flawscope.runtime import Inspector
from flawscope.versions import package_versions

_FOLLOWED = 24
"""Pixels of the thumbnail that are followed; known shifts are a few less."""
_KNOWN = 20
_CHANGES = ("plain", "light", "defect")


def moved_image(image: UInt8Array, right: int, down: int) -> UInt8Array:
    """Return an image moved by whole pixels, its edge repeated."""
    matrix = np.array([[1.0, 0.0, right], [0.0, 1.0, down]])
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def changed(image: UInt8Array, change: str, generator: np.random.Generator) -> UInt8Array:
    """Return an image with noise, and in another light or with a defect of a tenth of its area."""
    height, width = image.shape[:2]
    values = image.astype(np.float64)
    if change == "light":
        slope = np.linspace(-25, 25, width)[None, :, None]
        values = values * generator.uniform(0.6, 1.4) + generator.uniform(-30, 30) + slope
    if change == "defect":
        stretch = float(np.sqrt(generator.uniform(0.4, 2.5)))
        tall, wide = (
            min(side, round(np.sqrt(0.1) * side * by)) for side, by in ((height, stretch), (width, 1 / stretch))
        )
        top, left = generator.integers(0, height - tall + 1), generator.integers(0, width - wide + 1)
        values[top : top + tall, left : left + wide] = generator.choice([10, 240])
    return (values + generator.normal(0, 4, values.shape)).clip(0, 255).astype(np.uint8)


def phase_shift(reference: Float32Array, thumbnail: Float32Array) -> tuple[float, float]:
    """Return the shift right and down by phase correlation."""
    window = cv2.createHanningWindow((reference.shape[1], reference.shape[0]), cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(reference, thumbnail, window)
    return right, down


def estimate(folder: Path, count: int) -> dict[str, Any]:
    """Return errors in pixels of the image, and how clear the shifts are, of one category."""
    samples = in_seeded_order(open_dataset(folder).train_good, 0)[:count]
    images = [read_image(sample.path) for sample in samples]
    size = (images[0].shape[0], images[0].shape[1])
    images = [np.asarray(cv2.resize(image, size[::-1]), np.uint8) for image in images]
    small, scale = thumbnail_size(*size), max(size) / SIDE
    thumbnails = [part_thumbnail(image, small) for image in images]
    box, reach = (0, 0, *small), _FOLLOWED + 16
    reference = learn_reference(thumbnails, box, reach, is_first=True)
    finder = PartFinder(reference.image, box, reach)
    generator = np.random.default_rng(0)
    most = int(_KNOWN * scale)
    rows: dict[str, list[tuple[float, float, float]]] = {change: [] for change in _CHANGES}
    for image, thumbnail in zip(images[1:], thumbnails[1:], strict=True):
        at_rest, phase_at_rest = finder.find(thumbnail), phase_shift(reference.image, thumbnail)
        right, down = (int(value) for value in generator.integers(-most, most + 1, 2))
        for change in _CHANGES:
            seen = part_thumbnail(changed(moved_image(image, right, down), change, generator), small)
            found, phase = finder.find(seen), phase_shift(reference.image, seen)
            error = np.hypot(
                scale * (found.right - at_rest.right) - right,
                scale * (found.down - at_rest.down) - down,
            )
            other = np.hypot(
                scale * (phase[0] - phase_at_rest[0]) - right,
                scale * (phase[1] - phase_at_rest[1]) - down,
            )
            rows[change].append((float(error), float(other), found.clear))
    shifts = reference.shifts(size, 1)
    times = []
    for image in images:
        started = time.perf_counter()
        finder.find(part_thumbnail(image, small))
        times.append(1e3 * (time.perf_counter() - started))
    return {
        "data": folder.name,
        "image": list(size),
        "normals": {"images": shifts.images, "told": shifts.told, "largest_px": shifts.largest_px},
        "least_clear": min(row.clear for row in reference.found[1:]),
        "milliseconds_p50": float(np.median(times)),
        "changes": {
            change: {
                "error_px": {"median": float(np.median(values[:, 0])), "largest": float(values[:, 0].max())},
                "phase_error_px": {"median": float(np.median(values[:, 1])), "largest": float(values[:, 1].max())},
                "least_clear": float(values[:, 2].min()),
            }
            for change, values in ((name, np.array(found)) for name, found in rows.items())
        },
    }


def cost(bundle: Path, folder: Path, shifts: list[int]) -> list[dict[str, Any]]:
    """Return what one bundle says of the test images, moved to the right by each of some shifts."""
    dataset = open_dataset(folder)
    labels = np.array([sample.is_anomalous for sample in dataset.test])
    images = [read_image(sample.path) for sample in dataset.test]
    rows = []
    with Inspector.load(bundle, "cpu") as inspector:
        for shift in shifts:
            results = [inspector(moved_image(image, shift, 0)) for image in images]
            decisions = np.array([result.decision for result in results])
            scored = np.array([result.score is not None for result in results])
            scores = np.array([result.score for result in results if result.score is not None], np.float64)
            rows.append(
                {
                    "bundle": bundle.name,
                    "shift_px": shift,
                    "image_auroc": auroc(scores, labels[scored]) if len(set(labels[scored].tolist())) == 2 else None,
                    "rejected_normal": int((decisions[~labels] == "reject").sum()),
                    "accepted_anomalous": int((decisions[labels] == "accept").sum()),
                    "faults": int((decisions == "fault").sum()),
                    "normal": int((~labels).sum()),
                    "anomalous": int(labels.sum()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure; the results are written at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first, second = verbs.add_parser("estimate"), verbs.add_parser("cost")
    first.add_argument("--data", type=Path, nargs="+", required=True, help="category folders")
    first.add_argument("--images", type=int, default=24, help="normal images of each")
    second.add_argument("--bundle", type=Path, nargs="+", required=True, help="bundles with thresholds")
    second.add_argument("--data", type=Path, required=True, help="category folder")
    second.add_argument("--shifts", type=int, nargs="+", default=[0, 2, 4, 8, 16], help="pixels to the right")
    for verb in (first, second):
        verb.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # One thread, as on a device that has others busy; it is what the milliseconds are of.
    cv2.setNumThreads(1)
    if options.verb == "estimate":
        rows = [estimate(folder, options.images) for folder in options.data]
        for row in rows:
            print(json.dumps(row), flush=True)
        settings = {"data": [folder.name for folder in options.data], "images": options.images}
    else:
        rows = [row for bundle in options.bundle for row in cost(bundle, options.data, options.shifts)]
        settings = {"data": options.data.name, "shifts": options.shifts}
    document = {
        "suite": "part_shift",
        "settings": {"verb": options.verb, **settings},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
