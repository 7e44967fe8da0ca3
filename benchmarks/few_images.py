"""Few normal images: today's held-out split against cross-fitting, over many random draws.

Of a large set of normal images n are drawn, again and again. Each draw is used in several ways: some images learned and
20, but at most half, held out for the threshold (what `train` does with so few), or all of them learned, with the
threshold from scores of fits that have not seen the image (`cross_fit`). The detectors then score normal images that
were not drawn, and anomalous ones. Patches are computed once an image; banks, Gaussians, scores and thresholds come
from the functions of the product.

    python benchmarks/few_images.py --data parts --out FILE.json
    python benchmarks/few_images.py --data CATEGORY_FOLDER --weights FILE --out FILE.json
    python benchmarks/few_images.py --data parts --bank --out FILE.json      # rows of the bank instead
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_file import machine

from flawscope.arrays import Float32Array, Float64Array
from flawscope.bundle import PadimHead, PatchcoreHead
from flawscope.calibration.evaluation.metrics import auroc
from flawscope.calibration.thresholds.normal_quantile import order_statistic_threshold
from flawscope.config import FeatureSettings
from flawscope.cpp_ext import kcenter_greedy, neighbour_table
from flawscope.datasets import open_dataset
from flawscope.datasets.parts import DEFECTS, render
from flawscope.files import write_text
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.runtime.scorers.padim_scorer import PADIM
from flawscope.runtime.scorers.patchcore_scorer import PATCHCORE
from flawscope.training.detectors.padim import fit_gaussians
from flawscope.training.features.backbone import build_backbone
from flawscope.training.features.patch_extraction import covariance_of, scale_factors
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.features.whitening import whitening_matrix
from flawscope.versions import package_versions

RATE, CONFIDENCE = 0.01, 0.95
SIGMA = 4.0
PADIM_CHANNELS = 32
Score = Callable[[Float32Array], tuple[Float64Array, Float64Array]]
"""Raw patches float32 [N, P, D] -> image scores float64 [N] and largest map values float64 [N]."""


@dataclass(frozen=True)
class Pool:
    """Raw patches of all images of one product.

    Attributes:
        name: Name of the product.
        normal: float32 [N, P, D].
        anomalous: float32 [M, P, D].
        grid: Rows and columns of the patch grid.
        size: Height and width of the input.
        whitens: Whether channels are standardized, as for a backbone without learned weights.
    """

    name: str
    normal: Float32Array
    anomalous: Float32Array
    grid: tuple[int, int]
    size: tuple[int, int]
    whitens: bool


# ---- Images ----------------------------------------------------------------------------------------------------------


def parts_pool(kind: str, normal: int, each: int) -> Pool:
    """Return the patches of rendered parts: scattering features at 64 px, stage /8 alone."""
    good = [render(kind, 0, index, 128)[0] for index in range(normal)]
    bad = [render(kind, 0, index, 128, defect)[0] for defect in DEFECTS[kind] for index in range(each)]
    return _pool(kind, [good, bad], FeatureSettings(backbone="scattering", stages=(2,)), None, 64)


def folder_pool(root: Path, weights: Path) -> Pool:
    """Return the patches of a category's images: MobileNetV2 at 128 px, stage /8 alone."""
    dataset = open_dataset(root)
    samples = [*dataset.train_good, *(sample for sample in dataset.test if not sample.is_anomalous)]
    images = [
        [read_image(sample.path) for sample in chosen]
        for chosen in (samples, [sample for sample in dataset.test if sample.is_anomalous])
    ]
    half = (0.502, 0.502, 0.502)
    settings = FeatureSettings(
        backbone="mobilenetv2_100", stages=(2,), backbone_options={"pad_type": "same"}, mean=half, std=half
    )
    return _pool(root.name, images, settings, weights, 128)


def _pool(name: str, images: list[list[Any]], settings: FeatureSettings, weights: Path | None, side: int) -> Pool:
    features = PatchFeatures(build_backbone(settings, weights)[0], pool=True, upsample="bilinear")
    spec = Preprocessing((side, side))
    grid, _ = features.layout(spec.size)
    patches = []
    for group in images:
        with torch.inference_mode():
            found = [features(torch.from_numpy(prepare(image, spec)[None])).numpy() for image in group]
        patches.append(np.concatenate(found))
    return Pool(name, patches[0], patches[1], grid, spec.size, weights is None)


# ---- Detectors -------------------------------------------------------------------------------------------------------


def fit_patchcore(pool: Pool, rows: Float32Array, least: int, seed: int) -> Score:
    """Return PatchCore fitted on raw patches float32 [N, P, D], with 1 % of them in the bank and at least `least`."""
    whitening = _whitening(rows) if pool.whitens else None
    matrix = rows.reshape(-1, rows.shape[2])
    matrix = matrix if whitening is None else matrix @ whitening
    count = min(len(matrix), max(1, round(0.01 * len(matrix)), least))
    bank = np.ascontiguousarray(matrix[kcenter_greedy(matrix, count, seed)])
    tensors = {"bank": bank, "neighbours": neighbour_table(bank, min(9, len(bank)))}
    score = PATCHCORE.head(PatchcoreHead(pool.grid, 9, "paper", SIGMA), tensors, pool.size)
    return _finish(score, lambda raw: raw if whitening is None else raw @ whitening)


def fit_padim(pool: Pool, rows: Float32Array, least: int, seed: int) -> Score:
    """Return PaDiM fitted on raw patches float32 [N, P, D], on channels that the seed samples."""
    total = rows.shape[2]
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(PADIM_CHANNELS, total), replace=False))
    rows = rows[:, :, chosen]
    scale = _scale(rows) if pool.whitens else np.float32(1)
    gaussians = fit_gaussians([torch.from_numpy(rows * scale)], rows.shape[1], len(chosen), 0.01)
    tensors = {"mean": gaussians.mean, "whitening": gaussians.whitening}
    score = PADIM.head(PadimHead(pool.grid, SIGMA), tensors, pool.size)
    return _finish(score, lambda raw: raw[:, :, chosen] * scale)


def _whitening(rows: Float32Array) -> Float32Array:
    count, _, covariance = covariance_of([torch.from_numpy(rows)])
    return whitening_matrix(covariance, count).float().numpy()


def _scale(rows: Float32Array) -> Float32Array:
    return scale_factors(covariance_of([torch.from_numpy(rows)])[2]).numpy()


def _finish(head: Any, transform: Callable[[Float32Array], Float32Array]) -> Score:
    def score(raw: Float32Array) -> tuple[Float64Array, Float64Array]:
        scores, largest = [], []
        for start in range(0, len(raw), 64):
            maps, found = head(np.ascontiguousarray(transform(raw[start : start + 64]), np.float32))
            scores.append(found)
            largest.append(maps.max(axis=(1, 2)))
        return np.concatenate(scores).astype(np.float64), np.concatenate(largest).astype(np.float64)

    return score


METHODS = {"patchcore": fit_patchcore, "padim": fit_padim}


# ---- The ways to a threshold -----------------------------------------------------------------------------------------


def ways(n: int) -> dict[str, int]:
    """Return the ways to be compared -> folds, 0 for the split; each image its own where that is affordable."""
    return {"split": 0, "5 folds": 5, **({"each its own": n} if n <= 40 else {"20 folds": 20})}


def run_draw(
    pool: Pool, fit: Any, drawn: np.ndarray[Any, Any], fresh: np.ndarray[Any, Any], folds: int, least: int, seed: int
) -> dict[str, float]:
    """Return the figures of one draw in one way."""
    started = time.perf_counter()
    rows = pool.normal[drawn]
    if folds == 0:
        held = max(round(0.1 * len(drawn)), 20)
        held = min(held, len(drawn) // 2)
        final = fit(pool, rows[held:], least, seed)
        scores, largest = final(rows[:held])
    else:
        scores, largest = np.empty(len(drawn)), np.empty(len(drawn))
        for fold in np.array_split(np.arange(len(drawn)), folds):
            rest = np.setdiff1d(np.arange(len(drawn)), fold)
            scores[fold], largest[fold] = fit(pool, rows[rest], least, seed)(rows[fold])
        final = fit(pool, rows, least, seed)
    seconds = time.perf_counter() - started
    image = order_statistic_threshold(scores, RATE, CONFIDENCE)
    pixel = order_statistic_threshold(largest, RATE, CONFIDENCE)
    good, good_largest = final(pool.normal[fresh])
    bad, _ = final(pool.anomalous)
    labels = np.repeat([False, True], [len(good), len(bad)])
    return {
        "false_rejects": float((good > image.value).mean()),
        "false_rejects_map": float((good_largest > pixel.value).mean()),
        "bound": image.upper_bound,
        "recall": float((bad > image.value).mean()),
        "auroc": auroc(np.concatenate([good, bad]), labels) or 0.0,
        "seconds": seconds,
    }


def compare(pool: Pool, method: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row of figures for every n and way, means over all draws."""
    for n in options.images:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways(n)}
        for draw in range(options.draws):
            order = np.random.default_rng([options.seed, n, draw]).permutation(len(pool.normal))
            for way, folds in ways(n).items():
                fresh = order[n : n + options.fresh]
                found[way].append(run_draw(pool, METHODS[method], order[:n], fresh, folds, options.least, draw))
        for way, rows in found.items():
            rate = np.array([row["false_rejects"] for row in rows])
            on_map = np.array([row["false_rejects_map"] for row in rows])
            bound = rows[0]["bound"]
            yield {
                "data": pool.name,
                "method": method,
                "n": n,
                "way": way,
                "bound": bound,
                "false_rejects": float(rate.mean()),
                "false_rejects_q95": float(np.quantile(rate, CONFIDENCE)),
                "draws_above_bound": float((rate > bound).mean()),
                "false_rejects_map": float(on_map.mean()),
                "draws_above_bound_map": float((on_map > bound).mean()),
                **{name: float(np.mean([row[name] for row in rows])) for name in ("recall", "auroc", "seconds")},
                "auroc_sd": float(np.std([row["auroc"] for row in rows])),
                "recall_sd": float(np.std([row["recall"] for row in rows])),
                "draws": len(rows),
            }


def compare_banks(pool: Pool, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the AUROC of PatchCore for every n and least number of bank rows, mean over all draws."""
    for n in options.images:
        for least in (0, 250, 1000):
            values = []
            for draw in range(options.draws):
                order = np.random.default_rng([options.seed, n, draw]).permutation(len(pool.normal))
                score = fit_patchcore(pool, pool.normal[order[:n]], least, draw)
                good, bad = score(pool.normal[order[n : n + options.fresh]])[0], score(pool.anomalous)[0]
                labels = np.repeat([False, True], [len(good), len(bad)])
                values.append(auroc(np.concatenate([good, bad]), labels) or 0.0)
            patches = n * pool.normal.shape[1]
            yield {
                "data": pool.name,
                "method": "patchcore",
                "n": n,
                "least": least,
                "rows": min(patches, max(1, round(0.01 * patches), least)),
                "patches": patches,
                "auroc": float(np.mean(values)),
                "auroc_sd": float(np.std(values)),
                "auroc_worst": float(np.min(values)),
                "draws": len(values),
            }


def main() -> None:
    """Measure every product and method; the results are written anew after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parts, or a category folder")
    parser.add_argument("--kinds", nargs="+", default=["gear"], help="kinds of parts")
    parser.add_argument("--weights", type=Path, help="safetensors file of MobileNetV2, for a folder")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--images", nargs="+", type=int, default=[20, 40, 80], help="n, the normal images of a draw")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--fresh", type=int, default=400, help="normal images that the rate is measured on")
    parser.add_argument("--normal", type=int, default=1000, help="normal images that are rendered")
    parser.add_argument("--anomalous", type=int, default=25, help="anomalous images of each type that are rendered")
    parser.add_argument("--least", type=int, default=250, help="fewest rows of a bank")
    parser.add_argument("--bank", action="store_true", help="compare the fewest rows of a bank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.data == "parts":
        pools = (parts_pool(kind, options.normal, options.anomalous) for kind in options.kinds)
    else:
        pools = iter([folder_pool(Path(options.data), options.weights)])
    rows: list[dict[str, Any]] = []
    document = {
        "suite": "few_images",
        "settings": {
            "data": Path(options.data).name,
            "weights": options.weights.name if options.weights else "scattering",
            "draws": options.draws,
            "fresh": options.fresh,
            "least": options.least,
            "seed": options.seed,
            "rate": RATE,
            "confidence": CONFIDENCE,
            "sigma": SIGMA,
        },
        "machine": machine(),
        "versions": package_versions(),
    }
    for pool in pools:
        for method in ["patchcore"] if options.bank else options.methods:
            for row in compare_banks(pool, options) if options.bank else compare(pool, method, options):
                rows.append(row)
                print(
                    " ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True
                )
                load = os.getloadavg()[1]
                write_text(options.out, json.dumps(document | {"load_average": load, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
