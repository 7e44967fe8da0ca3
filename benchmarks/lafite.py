"""LafitE taken apart: the distance to a bank, editing by it, diffusion, and both, with the same bank and features.

The paper has no figures for editing without diffusion, which is a soft nearest neighbour and costs a search alone. For
every seed normal images are drawn, the channels measured, the bank chosen and the denoiser trained by the product's own
training; every row is then scored by the product's runtime functions on the same features of the same test images.

    python benchmarks/lafite.py --data CATEGORY_FOLDER --weights FILE --out FILE.json
    python benchmarks/lafite.py --data CATEGORY_FOLDER --weights FILE --epochs 0 --out FILE.json

With 0 epochs no denoiser is trained, and its rows are left out. Settings of the training can be changed by
`--set NAME=VALUE`, as on the command line of `train lafite`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from result_file import machine

from flawscope.arrays import BoolArray, Float32Array
from flawscope.bundle import PatchcoreHead
from flawscope.calibration.evaluation.metrics import (
    auroc,
    pixel_auroc,
    pixel_average_precision,
    rank_pixels,
    stack_masks,
)
from flawscope.config import LafiteConfig, build_config, flatten, parse_assignment
from flawscope.cpp_ext import neighbour_table
from flawscope.datasets import Dataset, Sample, image_hash, open_dataset
from flawscope.diffusion.schedule import Sampling, reconstruct
from flawscope.files import write_text
from flawscope.imaging.images import prepare, prepare_mask, read_image
from flawscope.progress import no_progress
from flawscope.runtime.scorers.lafite_scorer import FeatureEditor, finish_features
from flawscope.runtime.scorers.patchcore_scorer import PATCHCORE
from flawscope.training.detectors.lafite import train_lafite
from flawscope.training.detectors.lafite_network import FeatureDenoiser, JoinedFeatures
from flawscope.training.detectors.lafite_scores import lafite_head
from flawscope.training.features.backbone import build_backbone
from flawscope.training.features.patch_extraction import choose_device
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.loop import METRICS
from flawscope.training.loop.network_state import load_state
from flawscope.versions import package_versions

_BATCH = 8
_HALF = (0.502, 0.502, 0.502)
DEFAULTS: dict[str, Any] = {
    "backbone": "mobilenetv2_100",
    "backbone_options": {"pad_type": "same"},
    "mean": _HALF,
    "std": _HALF,
    "stages": (0, 1, 2, 3),
    "resize": (224, 224),
    "grid": (16, 16),
    "widths": (192, 256),
    "epochs": 20,
    "batch_size": 4,
    "learning_rate": 5e-4,
    "schedule": "cosine",
    "ema": 0.995,
    "preview_every": 1_000_000,
    "checkpoint_every": 1_000_000,
}
"""Narrow enough that a seed takes less than ten minutes on two cores: the grid is a quarter of the paper's patches."""

EDITINGS = ((1, 1.0), (5, 0.05), (5, 1.0), (10, 0.05), (10, 1.0))
"""Neighbours and temperature."""
DENOISED = (5, 1.0)
"""The editing before the denoising."""
STARTS = (100, 300)


@dataclass(frozen=True)
class Test:
    """Test images of a product.

    Attributes:
        images: Prepared, uint8 [N, H, W, 3].
        labels: bool [N], true for anomalous.
        masks: bool [N, H, W].
    """

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: BoolArray
    masks: BoolArray


def read_test(dataset: Dataset, config: LafiteConfig, good: int, each: int) -> Test:
    """Return at most so many normal images, and images of each defect type, spread evenly over all."""
    chosen: list[Sample] = []
    for _, group in itertools.groupby(sorted(dataset.test, key=lambda s: (s.defect, s.path)), key=lambda s: s.defect):
        samples = list(group)
        most = each if samples[0].is_anomalous else good
        chosen += [samples[int(index)] for index in np.linspace(0, len(samples) - 1, min(most, len(samples)))]
    spec = config.preprocessing
    read = [sample.read_mask() if sample.is_anomalous else None for sample in chosen]
    return Test(
        np.stack([prepare(read_image(sample.path, spec.bits), spec) for sample in chosen]),
        np.array([sample.is_anomalous for sample in chosen]),
        stack_masks([None if mask is None else prepare_mask(mask, spec) for mask in read], spec.size),
    )


def figures(maps: Float32Array, scores: Float32Array, test: Test) -> dict[str, float]:
    """Return the figures of maps and scores."""
    ranking = rank_pixels(maps, test.masks)
    assert ranking is not None, "a test part without defects"
    return {
        "image_auroc": auroc(scores.astype(np.float64), test.labels) or 0.0,
        "image_auroc_of_largest": auroc(maps.max(axis=(1, 2)).astype(np.float64), test.labels) or 0.0,
        "pixel_ap": pixel_average_precision(ranking),
        "pixel_auroc": pixel_auroc(ranking),
    }


def fit(config: LafiteConfig, options: argparse.Namespace, samples: Sequence[Sample]) -> tuple[FitResult, Any, float]:
    """Return the fit, the features it standardized, and the seconds it took."""
    started = time.perf_counter()
    backbone, _ = build_backbone(config.features, options.weights, config.preprocessing.size)
    backbone.to(choose_device(config.device))
    hashes = {sample.path: image_hash(sample.path) for sample in samples}
    with tempfile.TemporaryDirectory() as folder:
        fitted = train_lafite(config, backbone, samples, hashes, Path(folder), False, no_progress)
        for line in (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines()[-1:]:
            print(line, flush=True)
    offset, factor = (torch.from_numpy(np.asarray(fitted.tensors[name], np.float32)) for name in ("offset", "factor"))
    features = JoinedFeatures(backbone, config.grid, config.preprocessing.size, offset, factor)
    return fitted, features.to(choose_device(config.device)), time.perf_counter() - started


def rows_of(
    config: LafiteConfig, options: argparse.Namespace, dataset: Dataset, test: Test
) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for every way of one seed."""
    order = np.random.default_rng([config.seed, options.normal]).permutation(len(dataset.train_good))
    samples = [dataset.train_good[int(index)] for index in order[: options.normal]]
    fitted, module, seconds = fit(config, options, samples)
    size, device = config.preprocessing.size, choose_device(config.device)
    common = {"seed": config.seed, "fit_seconds": seconds, "bank_rows": len(fitted.tensors["bank"])}
    if config.diffusion:
        common |= {name: fitted.facts[name] for name in ("epochs", "best_epoch", "validation_error")}
    with torch.inference_mode():
        batches = torch.from_numpy(test.images).split(_BATCH)
        features = np.concatenate([module(batch.to(device)).cpu().numpy() for batch in batches])
    bank = np.asarray(fitted.tensors["bank"], np.float32)

    def measured(way: str, score: Callable[[Float32Array], tuple[Float32Array, Float32Array]], **more: Any) -> Any:
        started = time.perf_counter()
        parts = [score(features[start : start + _BATCH]) for start in range(0, len(features), _BATCH)]
        maps, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        ms = 1000 * (time.perf_counter() - started) / len(features)
        return {"way": way, **more, **figures(maps, scores, test), "ms_after_features": ms, **common}

    own = PatchcoreHead(config.grid, 9, "paper", config.maps.sigma)
    patchcore = PATCHCORE.head(own, {"bank": bank, "neighbours": neighbour_table(bank, min(9, len(bank)))}, size)
    yield measured(
        "patchcore", lambda part: patchcore(np.ascontiguousarray(part.reshape(*part.shape[:2], -1).transpose(0, 2, 1)))
    )
    head = lafite_head(config, 0.0)
    for neighbors, temperature in EDITINGS:
        edit = FeatureEditor(bank, msgspec.structs.replace(head, neighbors=neighbors, temperature=temperature))
        yield measured(
            "editing",
            lambda part, edit=edit: finish_features(edit(part), part, head, size),  # type: ignore[misc]
            neighbors=neighbors,
            temperature=temperature,
        )
    if not config.diffusion:
        return
    denoiser = FeatureDenoiser(config, module.channels)
    load_state(denoiser, fitted.networks["denoiser"], "denoiser")
    denoiser.to(device)

    def denoise(x: Float32Array, timestep: int) -> Float32Array:
        steps = torch.full((len(x),), timestep, dtype=torch.int64, device=device)
        with torch.inference_mode():
            return np.asarray(denoiser(torch.from_numpy(x).to(device), steps).cpu().numpy())

    noise = np.asarray(fitted.tensors["noise"], np.float32)
    edit = FeatureEditor(bank, msgspec.structs.replace(head, neighbors=DENOISED[0], temperature=DENOISED[1]))
    for start in STARTS:
        sampling = msgspec.structs.replace(config.sampling, start=start)
        for way in ("diffusion", "editing and diffusion"):
            more = {"neighbors": DENOISED[0], "temperature": DENOISED[1]} if way != "diffusion" else {}

            def score(
                part: Float32Array, way: str = way, sampling: Sampling = sampling
            ) -> tuple[Float32Array, Float32Array]:
                begun = part if way == "diffusion" else edit(part)
                return finish_features(reconstruct(begun, noise, sampling, denoise), part, head, size)

            yield measured(way, score, start=start, steps=sampling.steps, **more)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean, smallest and largest figures of every way over the seeds."""
    names = ("way", "neighbors", "temperature", "start", "steps")
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return [
        {name: value for name, value in zip(names, key, strict=True) if value is not None}
        | {
            figure: {"mean": float(np.mean(values)), "least": float(min(values)), "largest": float(max(values))}
            for figure in ("image_auroc", "image_auroc_of_largest", "pixel_ap", "pixel_auroc")
            for values in [[row[figure] for row in of_key]]
        }
        | {"ms_after_features": float(np.mean([row["ms_after_features"] for row in of_key])), "seeds": len(of_key)}
        for key, of_key in found.items()
    ]


def main() -> None:
    """Measure every seed; the results are written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a category folder")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of MobileNetV2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--normal", type=int, default=250, help="normal images of a seed")
    parser.add_argument("--good", type=int, default=100, help="most normal test images")
    parser.add_argument("--each", type=int, default=40, help="most test images of each defect type")
    parser.add_argument("--epochs", type=int, default=DEFAULTS["epochs"], help="0 trains no denoiser")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    changes = dict(parse_assignment(text) for text in options.settings)
    if options.epochs == 0:
        changes["diffusion"] = False
    chosen = {**DEFAULTS, "epochs": max(1, options.epochs), **changes}
    dataset = open_dataset(options.data)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        config = build_config("lafite", {**chosen, "seed": seed})[0]
        assert isinstance(config, LafiteConfig), "settings of lafite"
        for row in rows_of(config, options, dataset, read_test(dataset, config, options.good, options.each)):
            rows.append(row)
            print(" ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
            document = {
                "suite": "lafite",
                "settings": {
                    **flatten(config),
                    "data": options.data.name,
                    "weights": options.weights.name,
                    "normal": options.normal,
                    "good": options.good,
                    "each": options.each,
                },
                "machine": machine(),
                "versions": package_versions(),
                "load_average": os.getloadavg()[1],
                "summary": summary(rows),
                "rows": rows,
            }
            write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
