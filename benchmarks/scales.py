"""Measure what several scales cost: the feature graph of a bank for an image, and the search after it, in turns.

All graphs are built first and then timed one after the other, round after round, in one process: other work on the
machine hits all alike. The first is of one scale; ratios are to it. No image is read: time does not depend on content.

    python benchmarks/scales.py --weights FILE --out results/0.1.0/scales--mobilenetv2.json
    python benchmarks/scales.py --backbone vit_small_patch14_reg4_dinov2 --size 224 --out FILE     # random weights

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from result_file import machine

from flawscope.arrays import Float32Array
from flawscope.config import FittedConfig, PatchcoreConfig, build_config
from flawscope.config.setting_parts import change_settings
from flawscope.cpp_ext import Bank
from flawscope.export.onnx_trace import export_module
from flawscope.export.size_check import check_tensor_sizes
from flawscope.files import write_text
from flawscope.training.features.alignment import measure_places
from flawscope.training.features.backbone import Backbone, prepare_backbone, untrained_backbone
from flawscope.training.features.patch_features import build_features
from flawscope.training.features.scaled_backbone import ScaledBackbone, scaled_backbone
from flawscope.training.features.timm_network import resolve_network
from flawscope.training.loop.fit_result import FitResult
from flawscope.versions import package_versions

WARM_UP = 5
"""Rounds that are not timed."""


def build(options: argparse.Namespace, scales: tuple[float, ...]) -> tuple[FittedConfig, Backbone]:
    """Return settings and backbone of a bank at some scales."""
    settings: dict[str, Any] = {"backbone": options.backbone, "resize": options.size, "scales": list(scales)}
    if options.stages:
        settings["stages"] = [int(stage) for stage in options.stages.split(",")]
    if options.backbone_options:
        settings["backbone_options"] = json.loads(options.backbone_options)
    config, _ = build_config("patchcore", settings)
    assert isinstance(config, PatchcoreConfig)
    size, resizes = config.preprocessing.size, scales != (1.0,)
    if options.weights is not None:
        features, backbone, _ = prepare_backbone(config.features, options.weights, size, resizes=resizes)
    else:
        features = config.features
        if options.backbone != "scattering":
            features = resolve_network(features, size, resizes=resizes)
        torch.manual_seed(0)
        backbone = untrained_backbone(features)
    changes = {name: getattr(features, name) for name in ("stages", "backbone_options", "final_norm")}
    changed = change_settings(config, changes)
    assert isinstance(changed, PatchcoreConfig)
    return changed, backbone


class Contestant:
    """The feature graph of a bank at some scales, and a search of its patches in a bank of random rows."""

    def __init__(self, options: argparse.Namespace, scales: tuple[float, ...]) -> None:
        config, backbone = build(options, scales)
        scaled = scaled_backbone(backbone, config)
        size = config.preprocessing.size
        fitted = FitResult((1, 1), {}, places=measure_places(scaled, size).places)
        model = export_module(build_features(config, backbone, fitted), size, 1)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), session_options, providers=["CPUExecutionProvider"]
        )
        self.image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        self.threads = options.threads
        patches = self.patches()
        generator = np.random.default_rng(1)
        rows = patches[generator.integers(0, len(patches), options.rows)]
        rows = rows + generator.normal(0, rows.std(), rows.shape).astype(np.float32)
        self.bank = Bank(np.ascontiguousarray(rows, np.float32))
        self.facts = {
            "scales": list(scales),
            "sizes": [list(each) for each in (scaled.sizes if isinstance(scaled, ScaledBackbone) else (size,))],
            "grid_patches": len(patches),
            "channels": patches.shape[1],
            "peak_mib": round(check_tensor_sizes(model, 1).peak_bytes / 2**20, 1),
        }

    def patches(self) -> Float32Array:
        """Return the patches of the image, float32 [P, D]."""
        found: Float32Array = self.session.run(None, {"image": self.image})[0][0]
        return found

    def turn(self) -> tuple[float, float]:
        """Return the milliseconds of the graph, and of the search after it."""
        started = time.perf_counter()
        patches = self.patches()
        computed = time.perf_counter()
        self.bank.nearest(patches, 1, threads=self.threads)
        return 1000 * (computed - started), 1000 * (time.perf_counter() - computed)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every choice of scales, in turns."""
    wanted = [tuple(float(scale) for scale in text.split(",")) for text in ["1", *options.scales]]
    contestants = [Contestant(options, scales) for scales in dict.fromkeys(wanted)]
    times: list[list[tuple[float, float]]] = [[] for _ in contestants]
    for round_number in range(WARM_UP + options.rounds):
        for contestant, mine in zip(contestants, times, strict=True):
            turn = contestant.turn()
            if round_number >= WARM_UP:
                mine.append(turn)
    rows = []
    for contestant, mine in zip(contestants, times, strict=True):
        graph, search = (statistics.median(turn[part] for turn in mine) for part in (0, 1))
        pixels = sum(height * width for height, width in contestant.facts["sizes"])
        rows.append({**contestant.facts, "pixels": pixels, "graph_ms": graph, "search_ms": search})
    for row in rows:
        for name in ("pixels", "graph_ms", "search_ms"):
            row[f"{name.removesuffix('_ms')}_ratio"] = row[name] / rows[0][name]
        print(row, flush=True)
    return rows


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--backbone-options", default="", help='JSON, such as \'{"pad_type": "same"}\'')
    parser.add_argument("--weights", type=Path, help="safetensors file; random weights without it")
    parser.add_argument("--stages", default="", help="such as 2,3; those of the settings without it")
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels")
    parser.add_argument("--scales", nargs="+", default=["0.5,1", "0.5,1,1.5"], help="beside 1 alone")
    parser.add_argument("--rows", type=int, default=1000, help="rows of the bank that patches are searched in")
    parser.add_argument("--rounds", type=int, default=50, help="timed images of each graph")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    options = parse_arguments(arguments)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "weights")}
    document = {
        "suite": "scales",
        "settings": {**settings, "weights": options.weights.name if options.weights is not None else "random"},
        "versions": package_versions(),
        "rows": measure(options),
        "machine": machine(),  # the load while it was measured
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
