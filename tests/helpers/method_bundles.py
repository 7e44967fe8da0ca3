"""A small bundle of every method of the table, trained and exported in seconds; a row that is new gets one unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from published_weights import write_backbone_weights
from tiny_dataset import CATEGORY

from flawscope import methods
from flawscope.calibration.thresholds.combine import combine_bundles
from flawscope.config import CONFIGS, build_config, flatten
from flawscope.datasets import open_dataset
from flawscope.export.detectors.detector_export import export_run
from flawscope.export.exporter import exporter_named
from flawscope.training.detectors.detector_training import train_detector

MAX_BATCH = 3
NETWORK = "mobilenetv2_035"
SMALL: dict[str, Any] = {
    "backbone": "scattering",
    "resize": 32,
    "stages": [1, 2],
    "epochs": 1,
    "epoch_batches": 4,
    "batch_size": 8,
    "held_out_minimum": 5,
    "num_workers": 1,
    "device": "cpu",
    "procedural": True,
    "layers": 1,
    "steps": 3,
    "coreset": 60,
}
"""Settings of any method; each takes those that it knows."""
LEARNED: dict[str, Any] = {"epochs": 4, "epoch_batches": 8}
"""For networks whose maps are the same everywhere before they have learned something."""
OWN: dict[str, dict[str, Any]] = {
    "patchcore": {"resize": 64, "layers": "joined"},
    "padim": {"resize": 64, "channels": 10},
    "stfpm": {"backbone": NETWORK, "resize": 64},
    "segmenter": {"width": 8, "top": 20},
    "draem": {"width": 4, "depth": 3, "segmentation_width": 8, "segmentation_depth": 2, "score_window": 5}
    | {"learning_rate": 3e-3, **LEARNED},
    "destseg": {"width": 8, "blocks": 1, "head_width": 16, "top": 20, "learning_rate": 0.1, "residual_rate": 0.2}
    | {"head_rate": 0.2, **LEARNED},
    "ddad": {"widths": [8, 16], "attention": [16], "eta": 1.0},
    "autoencoder": {"widths": [8, 16, 16]},
    "dsad": {"widths": [16, 32], "heads": 2, "context": 8, "hint_widths": [4, 8, 16], "accumulate": 1}
    | {"sketch_size": 16, "pooling": 2, "sigma": 2.0},
    "lafite": {"grid": [8, 8], "widths": [16, 16], "attention": [4], "head_width": 8, "score_window": 4},
}
"""Method -> what keeps it small beyond that."""


def small_settings(method: str) -> dict[str, Any]:
    """Return the settings of a small training; a method that nobody has thought of here takes the common ones."""
    known = flatten(CONFIGS[method]())
    return {**{name: value for name, value in SMALL.items() if name in known}, **OWN.get(method, {})}


class MethodBundles:
    """Bundles by method, made when they are asked for.

    Args:
        folder: Where runs and bundles are made.
        dataset: Root of the tiny dataset.
    """

    def __init__(self, folder: Path, dataset: Path) -> None:
        self._folder, self._dataset = folder, open_dataset(dataset, CATEGORY)
        self._made: dict[str, Path] = {}

    def __getitem__(self, method: str) -> Path:
        """Return the bundle of a method that scores."""
        if method not in self._made:
            out = self._folder / f"{method}.flaw"
            if methods.method(method).kind == "ensemble":
                combine_bundles([self["patchcore"], self["padim"]], out, self._dataset, backend="cpu")
            else:
                export_run(self._run(method), out, max_batch=MAX_BATCH)
            self._made[method] = out
        return self._made[method]

    def _run(self, method: str) -> Path:
        run = self._folder / method
        if not run.exists():
            settings = small_settings(method)
            if method == "dsad":
                settings["autoencoder"] = str(self._run("autoencoder"))
            weights = None
            if settings.get("backbone") == NETWORK:
                weights = write_backbone_weights(self._folder / f"{method}.safetensors", NETWORK)
            train_detector(build_config(method, settings)[0], self._dataset, run, weights=weights, drawn_check=False)
        return run


def paths_of(method: str) -> tuple[str, ...]:
    """Return the paths that compute the scores of a method."""
    if methods.method(method).kind == "ensemble":
        return ("graph", "auto")  # of the second every member takes its own
    return ("graph", *exporter_named(method).other_paths)
