"""Compare scores and maps of a run in torch with those of its bundle in the runtime, on test images.

    python benchmarks/parity.py --run RUN --bundle BUNDLE --data ROOT [--category NAME] [--images N]

For runs that reconstruct (ddad, dsad). Both use the same noise, which is stored in the bundle. Prints the rank
correlation, the largest relative differences, and the median time per image of both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from flawscope.datasets import open_dataset
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime import Inspector
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.diffusion.torch_reconstruction import Reconstruction


def main() -> None:
    """Measure and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category")
    parser.add_argument("--images", type=int, default=100, help="number of test images, evenly spread")
    options = parser.parse_args()
    run = read_run(options.run)
    if not isinstance(run.module, Reconstruction):
        parser.error(f"{options.run}: expected a run of ddad or dsad.")
    samples = open_dataset(options.data, options.category).test
    # Evenly spread: test images are sorted by defect type, so the first ones would be of one type.
    chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, min(options.images, len(samples)))]
    scores: dict[str, list[float]] = {"torch": [], "bundle": []}
    times: dict[str, list[float]] = {"torch": [], "bundle": []}
    worst = 0.0
    with Inspector.load(options.bundle, "cpu") as inspector:
        for sample in chosen:
            image = prepare(read_image(sample.path), inspector.manifest.input)[None]
            started = time.perf_counter()
            expected = run.module(image)
            between = time.perf_counter()
            maps, bundle_scores = inspector.infer(image)
            times["bundle"].append(1e3 * (time.perf_counter() - between))
            times["torch"].append(1e3 * (between - started))
            scores["torch"].append(float(expected.scores[0]))
            scores["bundle"].append(float(bundle_scores[0]))
            worst = max(worst, float(np.abs(maps - expected.maps).max() / np.abs(expected.maps).max()))
    first, second = (np.array(scores[name]) for name in ("torch", "bundle"))
    figures = {
        "images": len(chosen),
        "score_spearman": float(spearmanr(first, second).statistic),
        "score_max_relative": float((np.abs(second - first) / np.abs(first)).max()),
        "map_max_relative": worst,
        "milliseconds": {name: float(np.median(values)) for name, values in times.items()},
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
