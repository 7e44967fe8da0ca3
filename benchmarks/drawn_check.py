"""The drawn check beside the truth: right, wrong and random weights, and what real defects say of the same detectors.

For every data set, method and way of taking the weights a detector is fitted; its drawn check stands beside the figures
of the same detector on the test images, by the same torch scores.

    python benchmarks/drawn_check.py --data FOLDER [FOLDER ...] --weights FILE --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch
import timm
import torch
from result_file import machine

from flawscope.calibration.evaluation.metrics import auroc, pixel_auroc, rank_pixels, stack_masks
from flawscope.config import build_config
from flawscope.datasets import Dataset, Sample, open_dataset
from flawscope.files import write_text
from flawscope.imaging.images import prepare, prepare_mask, read_image
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.trainer import trainer_of
from flawscope.versions import package_versions

BACKBONE = "mobilenetv2_100"
METHODS: dict[str, dict[str, Any]] = {"patchcore": {"stages": [2, 3]}, "padim": {"stages": [1, 2], "channels": 56}}
RIGHT = {"backbone_options": {"pad_type": "same"}, "mean": [0.502] * 3, "std": [0.502] * 3}
WEIGHTS: dict[str, dict[str, Any]] = {"right": RIGHT, "timm's defaults": {}, "pixels not scaled": {}, "random": RIGHT}
"""Ways of taking the weights; `pixels not scaled` gives them values from 0 to 255 in place of about -1 to 1."""
NOT_SCALED = {**RIGHT, "mean": [0.0] * 3, "std": [1 / 255] * 3}


def measure(dataset: Dataset, method: str, way: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fit one detector; return its drawn check and its figures on the test images."""
    settings = NOT_SCALED if way == "pixels not scaled" else WEIGHTS[way]
    layer = {"backbone": BACKBONE, "resize": [options.size, options.size], "seed": options.seed}
    config, _ = build_config(method, {}, {**layer, **METHODS[method], **settings}, {})
    weights = options.weights
    if way == "random":
        torch.manual_seed(options.seed)
        weights = folder / "random.safetensors"
        safetensors.torch.save_file(timm.create_model(BACKBONE, pretrained=False).state_dict(), weights)
    record = train_detector(config, dataset, folder / "run", weights=weights)
    run = read_run(folder / "run")
    images = [prepare(read_image(sample.path), config.preprocessing) for sample in dataset.test]
    maps, scores = trainer_of(config).scores(config, run.module, run.fitted, images)
    truth = np.array([sample.is_anomalous for sample in dataset.test])
    masks = [_mask(sample, config.preprocessing) for sample in dataset.test]
    known = np.array([mask is not None or not bad for mask, bad in zip(masks, truth, strict=True)])
    ranking = rank_pixels(maps, stack_masks(masks, config.preprocessing.size), known)
    assert record.drawn is not None
    return {
        "test": {
            "image_auroc": auroc(scores.astype(np.float64), truth),
            "pixel_auroc": None if ranking is None else pixel_auroc(ranking),
        },
        "drawn": msgspec.to_builtins(record.drawn),
    }


def _mask(sample: Sample, spec: Any) -> Any:
    mask = sample.read_mask() if sample.is_anomalous else None
    return None if mask is None else prepare_mask(mask, spec)


def smaller(dataset: Dataset, count: int, seed: int) -> Dataset:
    """Return a dataset with at most `count` training images, and as many normal and anomalous test images each."""
    chance = random.Random(seed)
    kinds = (
        list(dataset.train_good),
        [sample for sample in dataset.test if not sample.is_anomalous],
        [sample for sample in dataset.test if sample.is_anomalous],
    )
    chosen = {sample for kind in kinds for sample in chance.sample(kind, min(count, len(kind)))}
    return msgspec.structs.replace(dataset, samples=tuple(sample for sample in dataset.samples if sample in chosen))


def main() -> None:
    """Measure every combination; the results are written anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="category folders")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of mobilenetv2_100")
    parser.add_argument("--size", type=int, default=160, help="height and width of the input")
    parser.add_argument("--images", type=int, default=100, help="most images of each kind: training, good, defective")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    document = {
        "suite": "drawn_check",
        "settings": {
            "data": [path.name for path in options.data],
            "weights": options.weights.name,
            "backbone": BACKBONE,
            "methods": METHODS,
            "ways": {**WEIGHTS, "pixels not scaled": NOT_SCALED},
            **{key: getattr(options, key) for key in ("size", "images", "seed")},
        },
        "machine": machine(),
        "versions": package_versions(),
    }
    for path in options.data:
        dataset = smaller(open_dataset(path), options.images, options.seed)
        for method in METHODS:
            for way in WEIGHTS:
                with tempfile.TemporaryDirectory(prefix="flawscope-drawn-") as folder:
                    row = measure(dataset, method, way, options, Path(folder))
                rows.append({"data": path.name, "method": method, "weights": way, **row})
                test, drawn = row["test"], row["drawn"]
                print(
                    f"{path.name:<14} {method:<9} {way:<18} test {test['image_auroc']:.3f} / {test['pixel_auroc']:.3f} "
                    f"drawn {drawn['image_auroc']:.3f} ({drawn['low']:.3f} to {drawn['high']:.3f}) / "
                    f"{drawn['pixel_auroc']:.3f}  {drawn['verdict']}, {drawn['seconds']:.1f} s",
                    flush=True,
                )
                write_text(options.out, json.dumps(document | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
