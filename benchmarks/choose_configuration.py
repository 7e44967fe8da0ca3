"""Compare settings of detectors without any real defect: by defects drawn on held-out normal images.

Every candidate is trained on the normal training images without the held-out ones, exported, and measured by how well
it separates the held-out normal images from the same images with drawn defects. Test images are not opened.

    python benchmarks/choose_configuration.py --data CATEGORY_FOLDER --weights FILE --config FILE.yml --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from drawn_defects import SHAPES, draw_defect
from result_file import machine

from flawscope.calibration.evaluation.metrics import auroc, pixel_auroc, rank_pixels
from flawscope.datasets import open_dataset, split_held_out
from flawscope.files import write_text
from flawscope.imaging.images import prepare_mask, read_image
from flawscope.runtime import Inspector
from flawscope.versions import package_versions

CANDIDATES: dict[str, tuple[str, dict[str, str]]] = {
    "padim /4 /8 /16, 100 sampled": ("padim", {"stages": "1,2,3"}),
    "padim /4 /8 /16, all 152": ("padim", {"stages": "1,2,3", "channels": "152"}),
    "padim /4 /8 /16, 100 sampled, 320 px": ("padim", {"stages": "1,2,3", "resize": "320"}),
    "padim /8 /16, all 128, 320 px": ("padim", {"stages": "2,3", "channels": "128", "resize": "320"}),
    "patchcore /8 /16, 0.15 %": ("patchcore", {"stages": "2,3", "coreset": "0.0015"}),
    "patchcore /8 /16, 0.15 %, whitened": (
        "patchcore",
        {"stages": "2,3", "coreset": "0.0015", "standardize": "whiten"},
    ),
    "patchcore /8 /16, 0.15 %, whitened, 320 px": (
        "patchcore",
        {"stages": "2,3", "coreset": "0.0015", "standardize": "whiten", "resize": "320"},
    ),
}


def measure(
    options: argparse.Namespace, method: str, settings: dict[str, str], seed: int, folder: Path
) -> dict[str, float]:
    """Train and export one candidate; return its figures on drawn defects."""
    command = [sys.executable, "-m", "flawscope", "train", method, "--data", str(options.data)]
    command += ["--config", str(options.config), "--weights", str(options.weights), "--seed", str(seed)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    bundle = folder / "bundle.flaw"
    subprocess.run([*command, "--out", str(folder / "run")], check=True, stdout=subprocess.DEVNULL)
    export = [sys.executable, "-m", "flawscope", "export", str(folder / "run"), "--out", str(bundle)]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    hashes = set(json.loads((folder / "run" / "run.json").read_text())["held_out"])
    dataset = open_dataset(options.data)
    # The split that `train` makes with the same seed; its size is compared with that of the run below.
    _, held_out = split_held_out(dataset.train_good, seed=options.seed)
    scores, labels, kinds, maps, masks = [], [], [], [], []
    with Inspector.load(bundle, "cpu") as inspector:
        for index, sample in enumerate(held_out):
            image = read_image(sample.path)
            images = [("good", image, np.zeros(image.shape[:2], bool))]
            # A generator for each drawing: a shape that is added at the end leaves all others as they are.
            images += [
                (name, *draw_defect(image, name, np.random.default_rng([options.seed, index, place])))
                for place, name in enumerate(SHAPES)
            ]
            for name, pixels, mask in images:
                result = inspector(pixels)
                if result.score is None:
                    raise SystemExit(f"{sample.path}: expected an image that is scored, got: {result.reason}")
                scores.append(result.score)
                labels.append(name != "good")
                kinds.append(name)
                maps.append(result.anomaly_map)
                masks.append(prepare_mask(mask, inspector.manifest.input))
    if len(hashes) != len(held_out):
        raise SystemExit(f"expected {len(held_out)} held-out images in the run, got {len(hashes)}")
    values, truth = np.array(scores, np.float64), np.array(labels)
    ranking = rank_pixels(np.stack(maps), np.stack(masks))
    figures = {"image_auroc": auroc(values, truth) or 0.0, "pixel_auroc": pixel_auroc(ranking) if ranking else 0.0}
    for name in SHAPES:
        rows = np.array([kind in ("good", name) for kind in kinds])
        figures[name] = auroc(values[rows], truth[rows]) or 0.0
    return figures


def main() -> None:
    """Measure every candidate; the results are written anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="category folder")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of the backbone")
    parser.add_argument("--config", type=Path, required=True, help="YAML file with backbone, size, mean and deviation")
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out split and of the drawn defects")
    parser.add_argument("--only", default="", help="measure only candidates whose name has this text")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    document = {
        "suite": "choose_configuration",
        "settings": {"data": options.data.name, "weights": options.weights.name, "seed": options.seed},
        "machine": machine(),
        "versions": package_versions(),
    }
    for name, (method, settings) in CANDIDATES.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="flawscope-choose-") as folder:
            figures = measure(options, method, settings, options.seed, Path(folder))
        rows.append({"candidate": name, "method": method, "settings": settings, **figures})
        print(f"{name:<42} " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)
        write_text(options.out, json.dumps(document | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
