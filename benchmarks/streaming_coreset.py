"""Measure `selection=streaming` of PatchCore: memory over a long stream, and the bank beside that of all patches.

    python benchmarks/streaming_coreset.py memory --seconds 120 --out results/NAME.json
    python benchmarks/streaming_coreset.py accuracy --data CATEGORY_FOLDER --weights FILE --out results/NAME.json

`memory` draws patches and adds them image by image for so long; images per second are of the selection alone, without a
backbone. `accuracy` fits the same images by all patches, by random ones of each image, and in one pass, with the same
memory for the last two, and tests the exported bundles. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bank_switches import measure, part_of_dataset
from result_file import machine

from flawscope.config import PatchcoreConfig, build_config
from flawscope.cpp_ext import kcenter_greedy, nearest
from flawscope.files import write_text
from flawscope.progress import no_progress
from flawscope.resident_memory import resident_kib
from flawscope.training.detectors.patch_selection import StreamingSelection, WholeSelection, open_selection
from flawscope.training.features.backbone import prepare_backbone
from flawscope.training.features.patch_extraction import iterate_patches, to_numpy
from flawscope.training.features.patch_features import PatchFeatures, layer_widths
from flawscope.versions import package_versions

GRID = (28, 28)


def resident_mb() -> float:
    """Return the memory of this process that is in RAM, in MiB."""
    return (resident_kib() or 0) / 1024


class Parts:
    """Patches of images that wander: 40 kinds of surface, of which new ones come up as the stream goes on.

    Args:
        channels: Channels of a patch.
        kinds: Kinds of surface in all.
    """

    def __init__(self, channels: int, kinds: int = 40) -> None:
        self._generator = np.random.default_rng(0)
        self._centres = 4 * self._generator.normal(size=(kinds, channels)).astype(np.float32)

    def image(self, share: float) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the patches of the image after this share of the stream, float32 [P, D]."""
        known = max(4, int(share * len(self._centres)))
        kinds = self._generator.integers(known, size=GRID[0] * GRID[1])
        noise = self._generator.standard_normal((len(kinds), self._centres.shape[1]), np.float32)
        return self._centres[kinds] + noise


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Add images of drawn patches until the time is over; return the memory on the way."""
    changes = {"memory_budget_mb": options.budget, "max_bank": options.rows}
    config, _ = build_config("patchcore", {"selection": "streaming", **changes})
    assert isinstance(config, PatchcoreConfig)
    parts = Parts(options.channels)
    kcenter_greedy(parts.image(1.0), 10, 0)  # threads and their memory are there
    before = resident_mb()
    selection = StreamingSelection(config, options.images, GRID, options.channels)
    positions = np.arange(GRID[0] * GRID[1])
    started, told, images = time.perf_counter(), 0.0, 0
    points: list[dict[str, float]] = []
    while images < options.images and (spent := time.perf_counter() - started) < options.seconds:
        selection.add(parts.image(spent / options.seconds), positions)
        images += 1
        if spent >= told:
            points.append({"seconds": round(spent, 1), "images": images, "mib": round(resident_mb() - before, 1)})
            print(points[-1], flush=True)
            told += options.seconds / 12
    spent = time.perf_counter() - started
    bank, _ = selection.bank(no_progress, "")
    return {
        "plan": selection.description,
        "levels": {name: getattr(selection.plan.levels, name) for name in ("depth", "block", "kept", "factor")},
        "images": images,
        "patches": selection.rows,
        "patches_mib": selection.rows * options.channels * 4 >> 20,
        "images_per_second": images / spent,
        "bank_rows": len(bank),
        "factor": selection.factor,
        "mib_at_the_end": resident_mb() - before,
        "points": points,
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy and radius of the three banks of the same images."""
    dataset = part_of_dataset(options.data, options.train, options.test)
    candidates: dict[str, dict[str, Any]] = {
        "all patches": {"memory_budget_mb": 4096},
        "random patches of each image": {"memory_budget_mb": options.budget, "projection": "none"},
        "in one pass": {"memory_budget_mb": options.budget, "selection": "streaming"},
    }
    found: dict[str, Any] = {}
    for name, changes in candidates.items():
        runs = [measure(options, dataset, changes, seed) for seed in range(options.seeds)]
        found[name] = {"runs": runs, "radius": []}
        print(name, [round(run["image_auroc"], 4) for run in runs], runs[0]["facts"]["selected_in"], flush=True)
    settings = {"backbone": options.backbone, "backbone_options": json.loads(options.backbone_options)}
    settings |= {"mean": [options.mean] * 3, "std": [options.std] * 3, "resize": options.size}
    settings |= {"stages": [int(stage) for stage in options.stages.split(",")], "coreset": options.rows}
    patches, grid = _patches(settings, [sample.path for sample in dataset.train_good], options.weights)
    for seed in range(options.seeds):
        for name, changes in candidates.items():
            config, _ = build_config("patchcore", {**settings, **changes, "seed": seed})
            assert isinstance(config, PatchcoreConfig)
            with tempfile.TemporaryDirectory() as folder:
                selection = open_selection(config, len(patches), grid, patches.shape[2], Path(folder))
                assert isinstance(selection, StreamingSelection | WholeSelection)
                with selection:
                    for image in patches:
                        selection.add(image, np.arange(len(image)))
                    bank, _ = selection.bank(no_progress, "")
            away = np.sqrt(np.maximum(nearest(patches.reshape(-1, patches.shape[2]), bank, 1)[0], 0))
            figures = {"radius": float(away.max()), "mean": float(away.mean()), "factor": selection.factor}
            found[name]["radius"].append(figures)
            print(seed, name, figures, flush=True)
    return {"patches": list(patches.shape), "candidates": found}


def _patches(settings: dict[str, Any], paths: list[Path], weights: Path) -> tuple[Any, tuple[int, int]]:
    """Return the patches of all images, float32 [N, P, D], and their grid."""
    config, _ = build_config("patchcore", settings)
    assert isinstance(config, PatchcoreConfig)
    _, backbone, _ = prepare_backbone(config.features, weights, config.preprocessing.size)
    features = PatchFeatures(
        backbone, pool=config.pools, upsample=config.patches.upsample, layer_widths=layer_widths(config, backbone)
    )
    batches = [to_numpy(batch) for batch in iterate_patches(features, paths, config, "reading", no_progress)]
    return np.concatenate(batches), features.layout(config.preprocessing.size)[0]


def parse_arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    memory = parts.add_parser("memory", help="memory over a stream of drawn patches")
    memory.add_argument("--seconds", type=float, default=120)
    memory.add_argument("--images", type=int, default=1_000_000, help="images that the fit is planned for")
    memory.add_argument("--channels", type=int, default=128)
    memory.add_argument("--rows", type=int, default=2000, help="rows of the bank")
    memory.add_argument("--budget", type=int, default=128, help="memory_budget_mb")
    accuracy = parts.add_parser("accuracy", help="the bank beside that of all patches")
    accuracy.add_argument("--data", type=Path, required=True, help="category folder in MVTec AD layout")
    accuracy.add_argument("--weights", type=Path, required=True, help="safetensors file with timm's names")
    accuracy.add_argument("--backbone", default="mobilenetv2_100")
    accuracy.add_argument("--backbone-options", default='{"pad_type": "same"}', help="JSON")
    accuracy.add_argument("--mean", type=float, default=128 / 255)
    accuracy.add_argument("--std", type=float, default=128 / 255)
    accuracy.add_argument("--stages", default="2,3")
    accuracy.add_argument("--size", type=int, default=224)
    accuracy.add_argument("--rows", type=float, default=0.01, help="coreset: a share or a count")
    accuracy.add_argument("--train", type=int, default=300, help="training images")
    accuracy.add_argument("--test", type=int, default=60, help="most test images of each kind")
    accuracy.add_argument("--seeds", type=int, default=3)
    accuracy.add_argument("--budget", type=int, default=16, help="memory_budget_mb of all but the first")
    for part in (memory, accuracy):
        part.add_argument("--out", type=Path, required=True, help="JSON file")
    return parser.parse_args()


def main() -> None:
    """Measure one part and write it."""
    options = parse_arguments()
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("out", "data", "weights")}
    document = {
        "suite": "streaming_coreset",
        "settings": settings,
        "machine": machine(),
        "versions": package_versions(),
        **(measure_memory(options) if options.part == "memory" else compare(options)),
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
