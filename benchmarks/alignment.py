"""What aligning feature stages with the image changes: places of maps and pixel figures, before and after.

    python benchmarks/alignment.py impulses --out FILE.json
    python benchmarks/alignment.py maps --data CATEGORY_FOLDER --weights FILE --out FILE.json [--images FOLDER]
    python benchmarks/alignment.py cost --weights FILE --out FILE.json

`impulses`: where the stages of networks with random weights lie, and what is left of it after the alignment.
`maps`: detectors that are fitted twice on the same images, with `align` off and on, and tested on the same images.
`cost`: milliseconds an image of the exported feature graph and the head, off and on in turns. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import onnxruntime
import torch
from result_file import machine
from torch import Tensor

from flawscope import methods
from flawscope.arrays import BoolArray, Float32Array, Float64Array, Int64Array, UInt8Array
from flawscope.calibration.evaluation.intervals import percentile_interval
from flawscope.calibration.evaluation.metrics import (
    aupro,
    pixel_average_precision,
    rank_pixels,
    stack_masks,
)
from flawscope.calibration.evaluation.paired_differences import Tally, Truth, compare_tallies, tally
from flawscope.config import FittedConfig, PadimConfig, PatchcoreConfig, build_config
from flawscope.config.feature_settings import FeatureSettings
from flawscope.cpp_ext import kcenter_greedy, neighbour_table
from flawscope.datasets import Sample, open_dataset
from flawscope.export.onnx_trace import export_module
from flawscope.files import write_text
from flawscope.imaging.images import prepare, prepare_mask, read_image
from flawscope.imaging.png import write_png
from flawscope.progress import no_progress
from flawscope.training.detectors.padim import fit_padim, padim_head
from flawscope.training.detectors.patch_plan import bank_rows
from flawscope.training.detectors.patchcore import patchcore_head
from flawscope.training.features.alignment import measure_places
from flawscope.training.features.backbone import Backbone, build_backbone, untrained_backbone
from flawscope.training.features.patch_extraction import iterate_patches
from flawscope.training.features.patch_features import PatchFeatures, build_features
from flawscope.training.loop.fit_result import FitResult
from flawscope.versions import package_versions

PADDINGS = {"same": {"pad_type": "same"}, "symmetric": {}}
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "patchcore 2,3": ("patchcore", {"stages": [2, 3], "coreset": 0.01}),
    "padim 1,2": ("padim", {"stages": [1, 2], "channels": 56}),
    "padim 1,2,3": ("padim", {"stages": [1, 2, 3], "channels": 100}),
    "padim 1,2,3 bilinear": ("padim", {"stages": [1, 2, 3], "channels": 100, "upsample": "bilinear"}),
    "patchcore 1,2,3": ("patchcore", {"stages": [1, 2, 3], "coreset": 500, "projection": "jl"}),
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", {"zero_init_last": False}),
    "mobilenetv2_100": ("mobilenetv2_100", {}),
    "mobilenetv2_100, same": ("mobilenetv2_100", {"pad_type": "same"}),
    "efficientnet_b0": ("efficientnet_b0", {}),
}
LIMITS = (0.3, 0.05)
_DOT = 5


class _Kept(Backbone):
    """A backbone that computes the stages of an image once: all detectors of one padding see the same features."""

    def __init__(self, config: FittedConfig, weights: Path) -> None:
        source = build_backbone(config.features, weights)[0]
        super().__init__(source.network, source.mean, source.std)
        self.stages = config.features.stages
        self._kept: dict[str, list[Tensor]] = {}
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        keys = [hashlib.sha256(each.numpy().tobytes()).hexdigest() for each in image]
        for key, each in zip(keys, image, strict=True):
            if key not in self._kept:
                self._kept[key] = super().forward(each[None])
        return [torch.cat(parts) for parts in zip(*(self._kept[key] for key in keys), strict=True)]


class _Some(Backbone):
    """Some stages of a kept backbone; its own network, which says what stages there are, computes nothing."""

    def __init__(self, kept: _Kept, features: FeatureSettings) -> None:
        super().__init__(untrained_backbone(features).network, kept.mean, kept.std)
        self._source, self._rows = [kept], [kept.stages.index(stage) for stage in features.stages]
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        stages = self._source[0](image)
        return [stages[row] for row in self._rows]


def settings_of(method: str, settings: dict[str, Any], padding: str, size: int, align: bool) -> FittedConfig:
    """Return the settings of a detector on MobileNetV2."""
    shared = {"backbone": "mobilenetv2_100", "backbone_options": PADDINGS[padding], "resize": size, "align": align}
    config, _ = build_config(method, {"mean": [0.502] * 3, "std": [0.502] * 3, **shared, **settings})
    return cast("FittedConfig", config)


def fit_pair(
    name: str, padding: str, options: argparse.Namespace, backbone: Backbone, paths: list[Path], seed: int
) -> list[tuple[PatchFeatures, Any, str]]:
    """Return features, head and the note on alignment of a detector with `align` off and on, fitted on images.

    A memory bank keeps the same patches off and on, those that are selected with `align` off: another selection alone
    changes figures by more than the alignment does, and here it can only favour `off`.
    """
    method, settings = DETECTORS[name]
    kept: Int64Array | None = None
    results = []
    for align in (False, True):
        config = settings_of(method, settings | {"seed": seed}, padding, options.size, align)
        if method == "padim":
            fitted = fit_padim(cast("Any", config), backbone, paths, no_progress)
            head: Any = padim_head(cast("PadimConfig", config), fitted.grid, fitted.finest_places)
        else:
            patchcore = cast("PatchcoreConfig", config)
            measured = measure_places(backbone, config.preprocessing.size) if align else None
            grid, _ = PatchFeatures(backbone, pool=True, upsample="nearest").layout(config.preprocessing.size)
            fitted = FitResult(
                grid,
                {},
                places=None if measured is None else measured.places,
                facts={} if measured is None else {"alignment": measured.note},
            )
            batches = iterate_patches(build_features(config, backbone, fitted), paths, config, "reading", no_progress)
            patches = np.concatenate([batch.numpy().reshape(-1, batch.shape[-1]) for batch in batches])
            if kept is None:
                kept = kcenter_greedy(patches, bank_rows(patchcore, len(patches)), seed)
            bank = patches[kept]
            fitted.tensors["bank"] = bank
            fitted.tensors["neighbours"] = neighbour_table(bank, patchcore.neighbors)
            head = patchcore_head(patchcore, grid, fitted.finest_places)
        native = methods.scorer_of(method).head(head, fitted.tensors, config.preprocessing.size)
        results.append((build_features(config, backbone, fitted), native, str(fitted.facts.get("alignment", "off"))))
    return results


def score(features: PatchFeatures, head: Any, images: list[UInt8Array]) -> tuple[Float32Array, Float64Array]:
    """Return maps and scores of prepared images."""
    maps, scores = [], []
    for image in images:
        with torch.inference_mode():
            patches = features(torch.from_numpy(image[None])).numpy()
        each_map, each_score = head(patches)
        maps.append(each_map[0])
        scores.append(float(each_score[0]))
    return np.stack(maps), np.array(scores)


def regions(masks: BoolArray) -> list[tuple[int, BoolArray]]:
    """Return the 8-connected defect regions as (image, bool [H, W])."""
    found = []
    for index, mask in enumerate(masks):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        found += [(index, labels == label) for label in range(1, count)]
    return found


def overlap_shares(maps: Float32Array, masks: BoolArray, parts: list[tuple[int, BoolArray]]) -> Float64Array:
    """Return the share of each region in AU-PRO, float64 [R, limits]: its mean is AU-PRO, up to ties."""
    free = np.sort(maps[~masks])
    rates = [(free.size - np.searchsorted(free, maps[index][region])) / free.size for index, region in parts]
    return np.array([[np.clip(1 - rate / limit, 0, None).mean() for limit in LIMITS] for rate in rates])


def place_errors(maps: Float32Array, parts: list[tuple[int, BoolArray]]) -> Float64Array:
    """Return (down, right) from the box centre of each region to that of the blob on it, float64 [R, 2], in pixels.

    The blob is what is connected above half of the region's largest value, and above the image's median.
    """
    errors = []
    for index, region in parts:
        anomaly_map = maps[index]
        near = cv2.dilate(region.astype(np.uint8), np.ones((17, 17), np.uint8)) > 0
        floor = float(np.median(anomaly_map))
        top = np.where(near, anomaly_map, -np.inf)
        peak = np.unravel_index(int(top.argmax()), top.shape)
        blobs = cv2.connectedComponents((anomaly_map > floor + 0.5 * (top.max() - floor)).astype(np.uint8))[1]
        errors.append(_box_centre(blobs == blobs[peak]) - _box_centre(region))
    return np.array(errors)


def _box_centre(area: BoolArray) -> Float64Array:
    rows, columns = np.nonzero(area)
    return np.array([(rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2])


def dot_errors(features: PatchFeatures, head: Any, images: list[UInt8Array], seed: int) -> Float64Array:
    """Return (down, right) from dots drawn on normal images to the centre of what they add to the map, [N, 2]."""
    generator = np.random.default_rng(seed)
    errors = []
    for image in images:
        place = [int(generator.integers(side // 4, 3 * side // 4)) for side in image.shape[:2]]
        dotted = image.copy()
        dotted[place[0] : place[0] + _DOT, place[1] : place[1] + _DOT] //= 3
        before, after = (score(features, head, [each])[0][0] for each in (image, dotted))
        added = np.clip(after - before, 0, None).astype(np.float64)
        added = np.clip(added - 0.1 * added.max(), 0, None)
        if added.max() > 0:
            rows, columns = np.indices(added.shape)
            centre = np.array([(rows * added).sum(), (columns * added).sum()]) / added.sum()
            errors.append(centre - (np.array(place) + (_DOT - 1) / 2))
    return np.array(errors)


def interval(differences: Float64Array, images: Float64Array, resamples: int = 2000) -> list[float]:
    """Return mean and 95 % interval of paired differences [R], drawn with replacement by image."""
    names = np.unique(images)
    sums = np.array([differences[images == name].sum() for name in names])
    counts = np.array([(images == name).sum() for name in names])
    drawn = np.random.default_rng(0).integers(0, len(names), (resamples, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    bounds = percentile_interval(means, 0.95, 0.0)
    return [float(differences.mean()), bounds.low, bounds.high]


def measure_maps(options: argparse.Namespace) -> dict[str, Any]:
    """Fit and test every detector with both paddings, off and on."""
    dataset = open_dataset(options.data)
    train = [sample.path for sample in dataset.train_good[:: max(1, len(dataset.train_good) // options.train)]]
    train = train[: options.train]
    samples: list[Sample] = list(dataset.test)[:: options.every]
    rows: list[dict[str, Any]] = []
    spec = settings_of("padim", {}, "same", options.size, True).preprocessing
    images = [prepare(read_image(sample.path), spec) for sample in samples]
    masks = [sample.read_mask() if sample.is_anomalous else None for sample in samples]
    stacked = stack_masks([None if mask is None else prepare_mask(mask, spec) for mask in masks], spec.size)
    truth = Truth(np.array([sample.is_anomalous for sample in samples]), stacked)
    dots = [image for image, sample in zip(images, samples, strict=True) if not sample.is_anomalous][: options.dots]
    backbones = {
        padding: _Kept(settings_of("padim", {"stages": [1, 2, 3]}, padding, options.size, True), options.weights)
        for padding in PADDINGS
    }
    for name, (method, settings) in DETECTORS.items():
        for padding, kept in backbones.items():
            if options.only not in f"{name}, {padding}":
                continue
            features = settings_of(method, settings, padding, options.size, True).features
            backbone = _Some(kept, features)
            by_seed = []
            for seed in range(options.seeds if method == "patchcore" else 1):
                results = []
                for module, head, note in fit_pair(name, padding, options, backbone, train, seed):
                    maps, scores = score(module, head, images)
                    results.append((note, maps, scores, dot_errors(module, head, dots, 0)))
                by_seed.append(results)
            rows.append(compare(name, padding, by_seed, truth))
            print(json.dumps(rows[-1]), flush=True)
            if options.images is not None:
                draw(options.images / f"{padding}-{name.replace(' ', '-')}.png", images, truth, by_seed[0])
            write(options, "maps", rows)
    return {"rows": rows}


def compare(name: str, padding: str, by_seed: list[list[Any]], truth: Truth) -> dict[str, Any]:
    """Return the figures off and on, means over seeds, and their differences with intervals over images."""
    parts = regions(truth.masks)
    owners = np.array([index for index, _ in parts])
    areas = np.array([region.sum() for _, region in parts])
    smallest = areas <= np.quantile(areas, 0.25)
    use = truth.use
    # Normal images beside those whose every region is among the smallest.
    small_images = np.array([index in owners and bool(smallest[owners == index].all()) for index in range(len(use))])
    small_use = small_images | ~truth.labels
    row: dict[str, Any] = {"padding": padding, "detector": name, "seeds": len(by_seed)}
    row |= {"regions": len(parts), "small_regions": int(smallest.sum())}
    tallies: list[list[Tally]] = []
    shares, distances = [], []
    for at, key in enumerate(("off", "on")):
        results = [each[at] for each in by_seed]
        tallies.append([tally(maps, scores, truth, {}) for _, maps, scores, _ in results])
        shares.append(
            np.mean([overlap_shares(maps[use], truth.masks[use], _within(parts, use)) for _, maps, _, _ in results], 0)
        )
        places = [place_errors(maps, parts) for _, maps, _, _ in results]
        distances.append(np.mean([np.hypot(*each.T) for each in places], axis=0))
        figures: dict[str, list[float]] = {}
        for found, (_, maps, _, dots) in zip(tallies[-1], results, strict=True):
            ranking, small = rank_pixels(maps, truth.masks, use), rank_pixels(maps, truth.masks, small_use)
            assert ranking is not None
            assert small is not None
            one_seed = {
                **found.figures,
                **{f"aupro_{limit}": aupro(ranking, limit) for limit in LIMITS},
                "small_pixel_ap": pixel_average_precision(small),
                **{f"small_aupro_{limit}": aupro(small, limit) for limit in LIMITS},
                "dot_distance_px": float(np.hypot(*dots.T).mean()),
                "dot_down_px": float(np.median(dots[:, 0])),
                "dot_right_px": float(np.median(dots[:, 1])),
            }
            for figure, value in one_seed.items():
                figures.setdefault(figure, []).append(value)
        row[key] = {
            **{figure: float(np.mean(values)) for figure, values in figures.items()},
            "centre_distance_px": float(distances[-1].mean()),
            "centre_distance_median_px": float(np.median(distances[-1])),
            "small_centre_distance_px": float(distances[-1][smallest].mean()),
            "small_centre_distance_median_px": float(np.median(distances[-1][smallest])),
            "centre_shift_px": [float(value) for value in np.median(np.concatenate(places), axis=0)],
            "alignment": results[0][0],
        }
    differences = compare_tallies(tallies[0], tallies[1], truth, resamples=500)
    nearer = distances[1] - distances[0]
    row["difference"] = {
        # Over images alone: the seeds of a memory bank share them.
        **{key: [each.mean, each.by_pictures.low, each.by_pictures.high] for key, each in differences.items()},
        **{f"aupro_{limit}": interval((shares[1] - shares[0])[:, at], owners) for at, limit in enumerate(LIMITS)},
        "small_aupro_0.05": interval((shares[1] - shares[0])[smallest, 1], owners[smallest]),
        "centre_distance_px": interval(nearer, owners),
        "small_centre_distance_px": interval(nearer[smallest], owners[smallest]),
    }
    return row


def _within(parts: list[tuple[int, BoolArray]], use: BoolArray) -> list[tuple[int, BoolArray]]:
    """Return regions with the indices of their images among those in use."""
    new = np.cumsum(use) - 1
    return [(int(new[index]), region) for index, region in parts]


def draw(path: Path, images: list[UInt8Array], truth: Truth, results: list[Any]) -> None:
    """Write images with small defects, outlined, beside their maps off and on."""
    areas = truth.masks.sum(axis=(1, 2))
    chosen = [index for index in np.argsort(areas) if areas[index] >= 40][:24:4]
    rows = []
    for index in chosen:
        outline = cv2.findContours(truth.masks[index].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        cells = [cv2.drawContours(images[index].copy(), outline, -1, (0, 255, 0), 1)]
        for _, maps, _, _ in results:
            values = (maps[index] - maps[index].min()) / max(float(np.ptp(maps[index])), 1e-12)
            heat = cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
            cells.append(cv2.drawContours(np.ascontiguousarray(heat), outline, -1, (0, 255, 0), 1))
        rows.append(np.hstack(cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.vstack(rows))


def measure_impulses(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the stages of networks with random weights, and what is left after the alignment, with other impulses."""
    rows = []
    for name, (backbone_name, network_options) in NETWORKS.items():
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            settings = FeatureSettings(backbone=backbone_name, stages=(1, 2, 3), backbone_options=network_options)
            backbone, size = untrained_backbone(settings), (options.size, options.size)
            first, second = measure_places(backbone, size, 0), measure_places(backbone, size, 1)
            if first.places is None or second.places is None:
                rows.append({"network": name, "seed": seed, "note": first.note})
                continue
            for stage, places, again in zip(settings.stages, first.places, second.places, strict=True):
                centred = (places.step[0] - 1) / 2
                row = {"network": name, "seed": seed, "stage": stage, "stride": places.step[0]}
                row["before_px"] = [round(centred - value, 3) for value in again.start]
                row["after_px"] = [
                    round(mine - value, 3) for mine, value in zip(places.start, again.start, strict=True)
                ]
                rows.append(row)
                print(row, flush=True)
    return {"rows": rows}


def measure_cost(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the feature graphs of the detectors with `align` off and on, in turns."""
    rows = []
    image = np.random.default_rng(0).integers(0, 256, (1, options.size, options.size, 3), np.uint8)
    for name, (method, settings) in DETECTORS.items():
        sessions = {}
        for align in (False, True):
            config = settings_of(method, settings, "same", options.size, align)
            backbone = build_backbone(config.features, options.weights)[0]
            fitted = FitResult(
                (1, 1), {}, places=measure_places(backbone, config.preprocessing.size).places if align else None
            )
            model = export_module(build_features(config, backbone, fitted), config.preprocessing.size, 8)
            sessions[align] = onnxruntime.InferenceSession(
                model.SerializeToString(), providers=["CPUExecutionProvider"]
            )
        times: dict[bool, list[float]] = {False: [], True: []}
        for round_number in range(options.rounds + 5):
            for align, session in sessions.items():
                started = time.perf_counter()
                session.run(None, {"image": image})
                if round_number >= 5:  # the first are the warm-up
                    times[align].append(1000 * (time.perf_counter() - started))
        off, on = (statistics.median(times[align]) for align in (False, True))
        rows.append({"detector": name, "off_ms": off, "on_ms": on, "ratio": on / off})
        print(rows[-1], flush=True)
    return {"rows": rows}


def write(options: argparse.Namespace, what: str, rows: list[dict[str, Any]]) -> None:
    """Write the result so far."""
    kept = {key: getattr(options, key) for key in ("size", "train", "every", "seeds", "dots", "rounds")}
    names = {key: getattr(options, key).name for key in ("data", "weights") if getattr(options, key) is not None}
    document = {
        "suite": "alignment",
        "settings": {"what": what, **kept, **names},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Measure what is asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["impulses", "maps", "cost"])
    parser.add_argument("--data", type=Path, help="category folder")
    parser.add_argument("--weights", type=Path, help="safetensors file of MobileNetV2")
    parser.add_argument("--size", type=int, default=256, help="side of the input in pixels")
    parser.add_argument("--train", type=int, default=120, help="normal images to fit on, spread evenly")
    parser.add_argument("--every", type=int, default=2, help="take every so many of the test images")
    parser.add_argument("--seeds", type=int, default=2, help="random networks of each kind, or memory banks")
    parser.add_argument("--dots", type=int, default=40, help="normal images that a dot is drawn on")
    parser.add_argument("--rounds", type=int, default=50, help="timed images of each graph")
    parser.add_argument(
        "--only", default="", help="measure only what has this text in its detector and padding, such as '2,3, same'"
    )
    parser.add_argument("--images", type=Path, help="folder for images of maps")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    measure = {"impulses": measure_impulses, "maps": measure_maps, "cost": measure_cost}[options.what]
    write(options, options.what, measure(options)["rows"])


if __name__ == "__main__":
    main()
