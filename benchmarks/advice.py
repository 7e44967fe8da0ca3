"""The method that `flawscope data inspect` proposes, beside the one that it does not: both are fitted and measured.

The generated parts and any category folders, with the built-in backbone and, if given, with a pretrained one. Figures
are of the torch reference on the test images; nothing is exported, which changes none of them by more than parity.

    python benchmarks/advice.py [--data CATEGORY_FOLDER ...] [--weights FILE --config FILE.yml] --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from result_file import machine

from flawscope.calibration.evaluation.metrics import (
    aupro,
    auroc,
    pixel_average_precision,
    rank_pixels,
    stack_masks,
)
from flawscope.config import build_config
from flawscope.datasets import Dataset, Sample, as_recorded, hash_contents, open_dataset
from flawscope.datasets.advice import advise
from flawscope.datasets.parts import KINDS, write_dataset
from flawscope.export.exporter import exporter_of
from flawscope.files import write_text
from flawscope.imaging.images import prepare, prepare_mask, read_image
from flawscope.training.detectors.detector_run import Run, read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.settings import read_settings
from flawscope.versions import package_versions

METHODS = ("patchcore", "padim")
_BATCH = 8


def scored(run: Run, samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Return maps float32 [N, H, W] and scores float64 [N] of some samples by the run in torch."""
    exporter = exporter_of(run.record)
    spec = run.record.config.preprocessing
    head = exporter.head(run, [prepare(read_image(path), spec) for path in run.samples])
    maps, scores = [], []
    for start in range(0, len(samples), _BATCH):
        images = [prepare(read_image(sample.path), spec) for sample in samples[start : start + _BATCH]]
        batch_maps, batch_scores = exporter.reference(run, head, images)
        maps.append(batch_maps)
        scores.append(batch_scores)
    return np.concatenate(maps), np.concatenate(scores).astype(np.float64)


def measure(dataset: Dataset, method: str, settings: dict[str, Any], weights: Path | None, step: int) -> dict[str, Any]:
    """Fit a method with its defaults and return its figures on the test images."""
    config, _ = build_config(method, settings)
    with tempfile.TemporaryDirectory(prefix="flawscope-advice-") as folder:
        place = Path(folder) / "run"
        train_detector(config, dataset, place, weights=weights)
        run = read_run(place)
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        test = list(dataset.test)[::step]
        kept = set(run.record.held_out)
        hashes = as_recorded(hash_contents([sample.path for sample in dataset.train_good]), kept)
        held_out = [sample for sample in dataset.train_good if hashes[sample.path] in kept]
        threshold = float(scored(run, held_out)[1].max())
        maps, scores = scored(run, test)
    labels = np.array([sample.is_anomalous for sample in test])
    read = [sample.read_mask() if sample.is_anomalous else None for sample in test]
    spec = run.record.config.preprocessing
    masks = stack_masks([None if mask is None else prepare_mask(mask, spec) for mask in read], spec.size)
    ranking = rank_pixels(maps, masks, ~labels | masks.any(axis=(1, 2)))
    return {
        "method": method,
        "image_auroc": auroc(scores, labels),
        "pixel_ap": None if ranking is None else pixel_average_precision(ranking),
        "aupro": None if ranking is None else aupro(ranking),
        # At the largest score of the held-out normal images, as calibration takes it where they are few.
        "missed": int((scores[labels] <= threshold).sum()),
        "rejected": int((scores[~labels] > threshold).sum()),
        "anomalous": int(labels.sum()),
        "normal": int((~labels).sum()),
        "run_mib": round(size / 2**20, 1),
    }


def categories(folders: list[Path], scratch: Path, size: int) -> Iterator[tuple[str, Dataset]]:
    """Yield the generated parts, then the folders that were named."""
    write_dataset(scratch, KINDS, seed=0, size=size)
    for kind in KINDS:
        yield kind, open_dataset(scratch, kind)
    for folder in folders:
        yield folder.name, open_dataset(folder)


def main() -> None:
    """Measure every category with every backbone; the results are written anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="category folders, beside the generated parts")
    parser.add_argument("--weights", type=Path, help="safetensors file of a pretrained backbone")
    parser.add_argument("--config", help="YAML file with its name, mean, deviation and options")
    parser.add_argument("--size", type=int, default=224, help="input size in pixels")
    parser.add_argument("--step", type=int, default=1, help="take every n-th test image")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    backbones: list[tuple[dict[str, Any], Path | None]] = [({"backbone": "scattering"}, None)]
    if options.weights is not None:
        backbones.append((read_settings(options.config), options.weights))
    rows: list[dict[str, Any]] = []
    document = {
        "suite": "advice",
        "settings": {"size": options.size, "step": options.step, "data": [folder.name for folder in options.data]},
        "machine": machine(),
        "versions": package_versions(),
    }
    with tempfile.TemporaryDirectory(prefix="flawscope-parts-") as scratch:
        for name, dataset in categories(options.data, Path(scratch) / "parts", 256):
            for settings, weights in backbones:
                backbone = str(settings["backbone"])
                advice = advise(dataset, backbone=backbone)
                pose = advice.pose.kind if advice.pose else "unknown"
                for method in METHODS:
                    figures = measure(dataset, method, {**settings, "resize": options.size}, weights, options.step)
                    taken = method == advice.method
                    rows.append({"data": name, "backbone": backbone, "pose": pose, "proposed": taken, **figures})
                    shown = ", ".join(
                        f"{key} {value:.4f}" for key, value in figures.items() if isinstance(value, float)
                    )
                    mark = "proposed" if taken else ""
                    print(
                        f"{name:14} {backbone:16} {pose:8} {method:10} {mark:9} {shown}, missed {figures['missed']}"
                        f" of {figures['anomalous']}",
                        flush=True,
                    )
                    write_text(options.out, json.dumps(document | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
