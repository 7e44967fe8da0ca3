"""The commands that are killed, on artefacts so small that each takes a second or less."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CATEGORY = "steel"
TRAIN = ["--data", "DATA", "--category", CATEGORY, "--backbone", "scattering", "--image-size", "64"]
TRAIN += ["--set", "stages=1,2", "--set", "coreset=90", "--set", "neighbors=5", "--set", "held_out_minimum=5"]


@dataclass(frozen=True)
class Command:
    """One command, run in a folder of its own.

    Attributes:
        arguments: The command line; DATA stands for the dataset, which nothing changes.
        needs: Names of the artefacts that have to lie in the folder.
    """

    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()


COMMANDS = {
    "train": Command(("train", "patchcore", *TRAIN, "--out", "part.run")),
    "export": Command(("export", "part.run", "--out", "part.flaw", "--max-batch", "2"), ("part.run",)),
    "calibrate": Command(
        (*("calibrate", "part.flaw", "--data", "DATA", "--category", CATEGORY), *("--backend", "cpu")), ("part.flaw",)
    ),
    "evaluate": Command(
        (
            *("evaluate", "calibrated.flaw", "--data", "DATA", "--category", CATEGORY, "--backend", "cpu"),
            *("--json", "figures.json", "--report", "report"),
        ),
        ("calibrated.flaw",),
    ),
    "bundle pack": Command(("bundle", "pack", "part.flaw", "--out", "packed.flaw"), ("part.flaw",)),
    # A packed bundle is written anew as a whole.
    "calibrate packed": Command(
        ("calibrate", "packed.flaw", "--image-threshold", "3", "--pixel-threshold", "4"), ("packed.flaw",)
    ),
    "synth generate": Command(
        (
            *("synth", "generate", "drawer.flaw", "--image", "good.png", "--mask", "mask.png", "--defect", "stain"),
            *("--num", "2", "--backend", "cpu", "--out", "drawn"),
        ),
        ("drawer.flaw", "good.png", "mask.png"),
    ),
    "engine build": Command(
        ("engine", "build", "bright.flaw", "--runtime", "tensorrt-rtx", "--target", "8.9", "--cache", "engines"),
        ("bright.flaw",),
    ),
    "engine put": Command(("PUT", "engines")),
}
"""Name -> command. `engine put` stores invented bytes in the cache of engines: it needs no TensorRT."""

SETUP = (
    (*COMMANDS["train"].arguments,),
    (*COMMANDS["export"].arguments,),
    ("bundle", "pack", "part.flaw", "--out", "packed.flaw"),
    ("export", "part.run", "--out", "calibrated.flaw", "--max-batch", "2"),
    ("calibrate", "calibrated.flaw", "--data", "DATA", "--category", CATEGORY, "--backend", "cpu"),
)
"""Command lines that make the artefacts from the dataset."""


def has_tensorrt() -> bool:
    """Return whether engines can be built here."""
    from importlib.util import find_spec

    return find_spec("tensorrt_rtx") is not None


def write_inputs(folder: Path) -> None:
    """Write the dataset, and what commands need that is made by hand."""
    import cv2
    import numpy as np
    from tiny_bundle import write_tiny_bundle
    from tiny_dataset import normal_images, write_tiny_dataset
    from tiny_synth_bundle import write_tiny_synth

    write_tiny_dataset(folder / "data")
    write_tiny_synth(folder / "drawer.flaw", share=0.9)
    write_tiny_bundle(folder / "bright.flaw")
    (folder / "good.png").write_bytes(normal_images(folder / "data")[0].read_bytes())
    mask = np.zeros((64, 64), np.uint8)
    mask[8:16, 8:16] = 255
    cv2.imwrite(str(folder / "mask.png"), mask)


def run_command(arguments: tuple[str, ...], data: Path) -> int:
    """Run a command line as the console script does; return its exit status."""
    if arguments[0] == "PUT":
        put_engine(Path(arguments[1]))
        return 0
    from flawscope.cli import main

    try:
        main([str(data) if argument == "DATA" else argument for argument in arguments])
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else 1
    return 0


def engine_key() -> Any:
    """Return the key of the invented engine."""
    from flawscope.runtime.engines import BuildOptions, Target
    from flawscope.runtime.engines.cache import Key

    return Key("0" * 64, "score", "fp32", "tensorrt", "10.0", Target("", (8, 9), ""), BuildOptions(1, 1, 4))


def put_engine(folder: Path) -> None:
    """Store invented bytes as an engine."""
    from flawscope.runtime.engines import EngineCache
    from flawscope.runtime.engines.build import Built

    EngineCache(folder).put(engine_key(), "part", Built(b"plan" * 4096, 1.0, (), "[]", None, b"timing"))


def preload() -> None:
    """Import what the commands import, before processes are forked; none of it may begin a thread."""
    import importlib

    for name in (
        *("cli", "training.train_command", "training.detectors.detector_training", "export.export_command"),
        *("calibration.evaluation.report", "calibration.evaluation.evaluate_command", "bundle.bundle_command"),
        *("calibration.thresholds.calibrate_command", "runtime.synthesis.generate_command", "runtime.inspector"),
        *("runtime.engines.engine_command", "export.detectors.bank_exporter", "training.detectors.patchcore"),
    ):
        try:
            importlib.import_module(f"flawscope.{name}")
        except ModuleNotFoundError as err:
            print(f"not imported beforehand: {err}", file=sys.stderr)
    for name in ("onnxruntime", "onnx", "scipy.stats", "matplotlib.pyplot", "sklearn.metrics", "tokenizers"):
        importlib.import_module(name)
