"""Measure the switches of a PatchCore bank: each alone beside the base, on the exported bundle through the runtime.

All candidates learn from the same images, keep the same number of rows (unless a switch is about them) and are tested
on the same part of the test set, one after the other in one process. Nothing is chosen here: losses are listed too.

    python benchmarks/bank_switches.py --data CATEGORY_FOLDER --weights FILE --out results/NAME.json

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from result_file import machine

from flawscope.calibration.evaluation.metrics import (
    aupro,
    auroc,
    pixel_auroc,
    pixel_average_precision,
    rank_pixels,
    stack_masks,
)
from flawscope.config import build_config
from flawscope.datasets import Dataset, Sample, open_dataset
from flawscope.errors import DataError
from flawscope.export.detectors.detector_export import export_run
from flawscope.files import write_text
from flawscope.imaging.images import prepare_mask
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_training import train_detector
from flawscope.versions import package_versions

FIGURES = ("image_auroc", "pixel_ap", "pixel_auroc", "aupro", "aupro_005", "infer_p50_ms", "fit_s")

SWITCHES: dict[str, dict[str, Any]] = {
    "base": {},
    "reweight=none": {"reweight": "none"},
    "pool=false": {"pool": False},
    "metric=cosine": {"metric": "cosine"},
    "top_share=0.01": {"top_share": 0.01, "reweight": "none"},
    "views=flips": {"views": "flips"},
    "views=rotations": {"views": "rotations"},
    "layers=separate": {"layers": "separate", "reweight": "none"},
    "layers=separate, metric=cosine": {"layers": "separate", "reweight": "none", "metric": "cosine"},
    "standardize=whiten": {"standardize": "whiten"},
    "standardize=whiten, components=0.95": {"standardize": "whiten", "components": 0.95},
    "standardize=whiten, shrinkage=0.1": {"standardize": "whiten", "shrinkage": 0.1},
    "foreground": {"foreground": True},
    "scales=0.5,1": {"scales": [0.5, 1]},
    "scales=0.5,1,1.5": {"scales": [0.5, 1, 1.5]},
    "scales=0.5,1, layers=separate, metric=cosine": {
        "scales": [0.5, 1],
        "layers": "separate",
        "reweight": "none",
        "metric": "cosine",
    },
    "metric=cosine, top_share=0.01, views=rotations": {
        "metric": "cosine",
        "top_share": 0.01,
        "views": "rotations",
        "reweight": "none",
    },
}
"""Name -> what it changes of the base."""


def part_of(samples: tuple[Sample, ...], count: int) -> tuple[Sample, ...]:
    """Return `count` samples, evenly spread over all, or all of fewer."""
    return samples[:: max(1, len(samples) // count)][:count]


def part_of_dataset(path: Path, train: int, test: int) -> Dataset:
    """Return a dataset with so many training images, and at most `test` test images of each kind."""
    dataset = open_dataset(path)
    kinds = sorted({sample.defect for sample in dataset.test})
    tested = [part_of(tuple(s for s in dataset.test if s.defect == kind), test) for kind in kinds]
    kept = {sample.path for part in (part_of(tuple(dataset.train_good), train), *tested) for sample in part}
    return msgspec.structs.replace(dataset, samples=tuple(s for s in dataset.samples if s.path in kept))


def measure(options: argparse.Namespace, dataset: Dataset, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fit, export and test one candidate."""
    settings = {
        "backbone": options.backbone,
        "backbone_options": json.loads(options.backbone_options),
        "mean": [options.mean] * 3,
        "std": [options.std] * 3,
        "stages": [int(stage) for stage in options.stages.split(",")],
        "resize": options.size,
        "coreset": options.rows,
        "held_out": 0.0,
        "held_out_minimum": 0,
        "seed": seed,
    }
    config, _ = build_config("patchcore", {**settings, **changes})
    with tempfile.TemporaryDirectory(prefix="flawscope-bench-") as folder:
        run, bundle = Path(folder) / "run", Path(folder) / "bundle.flaw"
        started = time.perf_counter()
        record = train_detector(config, dataset, run, weights=options.weights)
        fitted = time.perf_counter() - started
        manifest = export_run(run, bundle, max_batch=1)
        with Inspector.load(bundle, "cpu") as inspector:
            paths = [sample.path for sample in dataset.test]
            for path in paths[:10]:  # warm-up
                inspector(path)
            results = [inspector(path) for path in paths]
    if faults := [result for result in results if result.decision == "fault"]:
        raise SystemExit(f"expected all test images to be scored, got {len(faults)} faults: {faults[0].reason}")
    labels = np.array([sample.is_anomalous for sample in dataset.test])
    scores = np.array([result.score for result in results], np.float64)
    maps = np.stack([result.anomaly_map for result in results if result.anomaly_map is not None])
    full_size = [sample.read_mask() for sample in dataset.test]
    spec = manifest.input
    masks = stack_masks([None if mask is None else prepare_mask(mask, spec) for mask in full_size], spec.size)
    # Anomalous images without pixel truth would count as normal pixels.
    ranking = rank_pixels(maps, masks, ~labels | masks.any(axis=(1, 2)))
    if ranking is None:
        raise SystemExit("expected images with pixel truth, got none")
    return {
        "image_auroc": auroc(scores, labels),
        "pixel_ap": pixel_average_precision(ranking),
        "pixel_auroc": pixel_auroc(ranking),
        "aupro": aupro(ranking),
        "aupro_005": aupro(ranking, 0.05),
        "infer_p50_ms": float(np.percentile([result.timings_ms["infer"] for result in results], 50)),
        "fit_s": fitted,
        "facts": record.facts,
    }


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, per switch and figure, the mean over seeds and its difference from the base of the same seeds."""
    rows = []
    base = {run["seed"]: run for run in runs if run["switch"] == "base"}
    for switch in dict.fromkeys(run["switch"] for run in runs):
        mine = [run for run in runs if run["switch"] == switch and "refused" not in run and run["seed"] in base]
        for figure in FIGURES if mine else ():
            values = [run[figure] for run in mine]
            differences = [run[figure] - base[run["seed"]][figure] for run in mine]
            rows.append(
                {
                    "switch": switch,
                    "figure": figure,
                    "mean": statistics.mean(values),
                    "difference": statistics.mean(differences),
                    "seeds": len(values),
                }
            )
    return rows


def parse_arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="category folder in MVTec AD layout")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file with timm's names")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--backbone-options", default='{"pad_type": "same"}', help="JSON")
    parser.add_argument("--mean", type=float, default=128 / 255)
    parser.add_argument("--std", type=float, default=128 / 255)
    parser.add_argument("--stages", default="2,3")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rows", type=int, default=1000, help="rows of every bank")
    parser.add_argument("--train", type=int, default=120, help="training images")
    parser.add_argument("--test", type=int, default=60, help="most test images of each kind")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default="", help="measure only switches whose name has this text")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file, written anew after every run; goes on there"
    )
    return parser.parse_args()


def main() -> None:
    """Measure every switch; what --out has of the same settings is kept."""
    options = parse_arguments()
    dataset = part_of_dataset(options.data, options.train, options.test)
    without = ("out", "only", "seeds")
    settings = {key: str(value) for key, value in vars(options).items() if key not in without}
    settings |= {"data": options.data.name, "weights": options.weights.name, "test_images": str(len(dataset.test))}
    runs: list[dict[str, Any]] = []
    if options.out.is_file():
        earlier = json.loads(options.out.read_text())
        if earlier["settings"] != settings:
            raise SystemExit(f"{options.out}: expected the same settings to go on, got others. Choose another --out.")
        runs = earlier["runs"]
    for seed in (int(text) for text in options.seeds.split(",")):
        for name, changes in SWITCHES.items():
            if options.only not in name or any((run["switch"], run["seed"]) == (name, seed) for run in runs):
                continue
            try:
                run = {"switch": name, "seed": seed, **measure(options, dataset, changes, seed)}
            except DataError as err:  # a split that is none: the foreground of textures
                run = {"switch": name, "seed": seed, "refused": str(err)}
            runs.append(run)
            print(f"{name:<50} " + ", ".join(f"{key} {run[key]:.4g}" for key in FIGURES if key in run), flush=True)
            document = {
                "suite": "bank_switches",
                "settings": settings,
                "machine": machine(),
                "versions": package_versions(),
                "summary": summarise(runs),
                "runs": runs,
            }
            write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
