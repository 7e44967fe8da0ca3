"""Missed defects of every type by several detectors, on test images that none of them has seen.

Each at its own threshold, the highest score of the normal images it held out, and at the threshold that rejects a
share of the normal test images, which compares at the same price. Bundles joined by a comma are one detector trained
with several seeds; their counts are summed.

    python benchmarks/missed_defects.py --data FOLDER --category NAME --support DIR --drawn DIR [--drawn DIR ...] \
        --out FILE.json NAME=BUNDLE[,BUNDLE ...] [NAME=BUNDLE ...]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from result_file import machine

from flawscope.arrays import BoolArray, Float64Array
from flawscope.bundle import read_image_hashes
from flawscope.calibration.evaluation.metrics import auroc
from flawscope.config import build_config
from flawscope.datasets import as_recorded, open_dataset
from flawscope.datasets.defects.support_set import read_support
from flawscope.files import write_text
from flawscope.runtime import Inspector
from flawscope.training.loop.image_batches import load_batches
from flawscope.versions import package_versions
from flawscope.workflows.utility.utility_data import UtilityData, read_utility_data


@dataclass(frozen=True)
class Counts:
    """What one detector misses.

    Attributes:
        normal: Normal test images.
        false_rejects: Of them, above the detector's own threshold.
        defects: Defect type -> images, missed at the own threshold, missed at the threshold of the same price, and the
            area under the ROC curve of image scores.
    """

    normal: int
    false_rejects: int
    defects: dict[str, dict[str, float]]


def threshold_of_share(normal: Float64Array, share: float) -> float:
    """Return the lowest score of normal images above which at most a share of them lies."""
    return float(np.sort(normal)[max(math.ceil((1 - share) * len(normal)) - 1, 0)])


def count(
    scores: Float64Array, types: Sequence[str], normal: BoolArray, used: BoolArray, own: float, share: float
) -> Counts:
    """Count what one detector misses; a score strictly above a threshold is a reject.

    Args:
        scores: float64 [N], of all test images.
        types: The defect type of each; of a normal image it does not matter.
        normal: bool [N].
        used: bool [N], images that nothing has seen.
        own: The detector's own threshold.
        share: Share of the normal images that the other threshold rejects.
    """
    good = scores[normal & used]
    same_price = threshold_of_share(good, share)
    names = np.array(types)
    defects: dict[str, dict[str, float]] = {}
    for name in sorted(set(names[~normal & used])):
        bad = scores[(names == name) & ~normal & used]
        truth = np.arange(len(good) + len(bad)) >= len(good)
        defects[str(name)] = {
            "images": len(bad),
            "missed": int((bad <= own).sum()),
            "missed_at_share": int((bad <= same_price).sum()),
            "auroc": auroc(np.concatenate([good, bad]), truth) or 0.0,
        }
    return Counts(len(good), int((good > own).sum()), defects)


def measure(bundle: Path, data: UtilityData, share: float) -> Counts:
    """Score the images of a benchmark with one bundle."""
    with Inspector.load(bundle, "cpu") as inspector:

        def scored(paths: Sequence[Path]) -> Float64Array:
            batches = load_batches(paths, inspector.manifest.input, min(8, inspector.manifest.max_batch), 1)
            return np.concatenate([inspector.infer(images)[1] for images in batches]).astype(np.float64)

        hashes = read_image_hashes(inspector.bundle)
        contents, kept = as_recorded(data.hashes, hashes.held_out), frozenset(hashes.held_out)
        own = float(scored([path for path in data.hashes if contents[path] in kept]).max())
        scores = scored([sample.path for sample in data.samples])
    types = [sample.defect for sample in data.samples]
    return count(scores, types, ~data.truth.labels, data.is_clean, own, share)


def summed(runs: Sequence[Counts]) -> dict[str, Any]:
    """Return the sums of a detector's seeds, and the mean of the areas under the curve."""
    types = {
        name: {
            **{key: sum(run.defects[name][key] for run in runs) for key in ("images", "missed", "missed_at_share")},
            "auroc": float(np.mean([run.defects[name]["auroc"] for run in runs])),
        }
        for name in runs[0].defects
    }
    return {
        "seeds": len(runs),
        "normal": sum(run.normal for run in runs),
        "false_rejects": sum(run.false_rejects for run in runs),
        "defects": types,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category")
    parser.add_argument("--support", type=Path, required=True, help="support set of the drawn defects")
    parser.add_argument("--drawn", type=Path, action="append", default=[], help="folder of drawn defects; repeatable")
    parser.add_argument("--share", type=float, default=0.05, help="share of normal test images to reject")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("detectors", nargs="+", metavar="NAME=BUNDLE[,BUNDLE ...]")
    options = parser.parse_args(arguments)
    if not 0 < options.share < 1:
        parser.error(f"--share: expected above 0 and below 1, got {options.share}")
    detectors = {}
    for text in options.detectors:
        name, separator, bundles = text.partition("=")
        if not separator or not bundles or name in detectors:
            parser.error(f"expected NAME=BUNDLE with different names, got {text}")
        detectors[name] = [Path(bundle) for bundle in bundles.split(",")]
    dataset = open_dataset(options.data, options.category)
    config, _ = build_config("segmenter", {}, {}, {})  # its size decides nothing here: only scores are compared
    data = read_utility_data(config, dataset, read_support(options.support), options.drawn, lambda *_: None)
    rows = {}
    for name, bundles in detectors.items():
        rows[name] = row = summed([measure(bundle, data, options.share) for bundle in bundles])
        told = [
            f"{kind} {one['missed']}, {one['missed_at_share']} of {one['images']} ({one['auroc']:.3f})"
            for kind, one in row["defects"].items()
        ]
        print(f"{name}: {row['false_rejects']} false rejects of {row['normal']}; missed " + "; ".join(told), flush=True)
    result = {
        "suite": "missed_defects",
        "settings": {"share": options.share, "category": options.category, "drawn": [d.name for d in options.drawn]},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    write_text(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
