"""Measure what reading ahead brings to a stream: the same images with and without, in turns.

JPEG files are made of the images: as they are, and enlarged to a camera's size with noise of a sensor, since a smooth
enlargement would decode faster. Bytes come from memory; disk and camera are not part of it. Results must be equal.

    python benchmarks/reading_ahead.py BUNDLE IMAGE_FOLDER --out results/NAME.json

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from result_file import machine

from flawscope.files import write_text
from flawscope.imaging.image_files import images_in
from flawscope.imaging.images import read_image
from flawscope.runtime import Inspector
from flawscope.versions import package_versions

NOISE = 4.0
"""Standard deviation of the noise, in grey levels."""


def enlarged(path: Path, height: int, seed: int) -> bytes:
    """Return an image as a JPEG file of this height; 0 for its own."""
    image = read_image(path)[..., ::-1]
    if height:
        size = (round(image.shape[1] * height / image.shape[0]), height)
        larger = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        noise = np.random.default_rng(seed).standard_normal(larger.shape, np.float32) * NOISE
        image = np.clip(larger + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def measure(
    inspector: Inspector, images: Sequence[bytes], batch: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return one row for each number of batches ahead: milliseconds of an image, and the ratio to none, by turn.

    Raises:
        SystemExit: If reading ahead changes a score.
    """
    times: dict[int, list[float]] = {ahead: [] for ahead in options.ahead}
    scores = None
    for turn in range(options.turns + 1):
        for step in range(len(options.ahead)):
            ahead = options.ahead[(turn + step) % len(options.ahead)]
            started = time.perf_counter()
            got = [result.score for result in inspector.stream(images, batch, ahead=ahead)]
            if turn:  # the first warms up
                times[ahead].append(1e3 * (time.perf_counter() - started) / len(images))
            if got != (scores := scores or got):
                raise SystemExit(f"reading ahead {ahead}: expected the scores without, got others.")
    first = np.array(times[options.ahead[0]])
    return [
        {
            "batch": batch,
            "ahead": ahead,
            "image_ms": {"min": min(taken), "median": float(np.median(taken))},
            "times_first": dict(zip(("p25", "p50", "p75"), np.percentile(first / taken, (25, 50, 75)), strict=True)),
        }
        for ahead, taken in times.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every size and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--heights", type=int, nargs="+", default=[0, 912, 2048], help="pixels; 0 for the images' own")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 1, 2, 4], help="the first is compared with")
    parser.add_argument("--number", type=int, default=16, help="images of a stream")
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    rows = []
    with Inspector.load(options.bundle, "cpu") as inspector:
        for height in options.heights:
            images = [enlarged(path, height, n) for n, path in enumerate(images_in(options.images)[: options.number])]
            for batch in options.batches:
                for row in measure(inspector, images, batch, options):
                    rows.append({"height": height, **row})
                    print(json.dumps(rows[-1]), flush=True)
    document = {
        "suite": "reading_ahead",
        "settings": {
            name: str(value.name if isinstance(value, Path) else value)
            for name, value in vars(options).items()
            if name != "out"
        },
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    if options.out is not None:
        write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
