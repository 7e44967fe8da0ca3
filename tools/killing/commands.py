"""The commands that are killed, on artefacts so small that each takes a second or less."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
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
        weight: Share of the kills: few for commands that take long.
    """

    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    weight: int = 4


COMMANDS = {
    "train": Command(("train", "patchcore", *TRAIN, "--out", "part.run"), weight=2),
    "export": Command(("export", "part.run", "--out", "part.flaw", "--max-batch", "2"), ("part.run",), weight=1),
    "calibrate": Command(
        (*("calibrate", "part.flaw", "--data", "DATA", "--category", CATEGORY), *("--backend", "cpu")),
        ("part.flaw",),
        weight=3,
    ),
    "evaluate": Command(
        (
            *("evaluate", "calibrated.flaw", "--data", "DATA", "--category", CATEGORY, "--backend", "cpu"),
            *("--json", "figures.json", "--report", "report"),
        ),
        ("calibrated.flaw",),
        weight=2,
    ),
    "score": Command(
        # Without maps, which are written one by one: each is whole, and their folder is no artefact.
        ("score", "calibrated.flaw", "DATA", "--backend", "cpu", "--out", "scored", "--csv", "scored.csv"),
        ("calibrated.flaw",),
        weight=2,
    ),
    "bundle pack": Command(("bundle", "pack", "bright.flaw", "--out", "packed.flaw"), ("bright.flaw",)),
    # A packed bundle is written anew as a whole.
    "calibrate packed": Command(
        ("calibrate", "packed.flaw", "--image-threshold", "3", "--pixel-threshold", "4"), ("packed.flaw",)
    ),
    "synth generate": Command(
        (
            *("synth", "generate", "drawer.flaw", "--image", "good.png", "--mask", "mask.png", "--defect"),
            *("pitting", "--text", "a * defect", "--num", "2", "--parity", "--backend", "cpu", "--out", "drawn"),
        ),
        ("drawer.flaw", "good.png", "mask.png"),
        weight=3,
    ),
    "engine build": Command(
        ("engine", "build", "bright.flaw", "--runtime", "tensorrt-rtx", "--target", "8.9", "--cache", "engines"),
        ("bright.flaw",),
        weight=2,
    ),
    "engine put": Command(("killing.commands:put_engine", "engines")),
}
"""Name -> command. `engine put` stores invented bytes in the cache of engines: it needs no TensorRT."""

_MAKERS = {
    "part.run": (COMMANDS["train"].arguments, ()),
    "part.flaw": (COMMANDS["export"].arguments, ("part.run",)),
    "packed.flaw": (COMMANDS["bundle pack"].arguments, ()),
    "calibrated.flaw": (("export", "part.run", "--out", "calibrated.flaw", "--max-batch", "2"), ("part.run",)),
}


def setup(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the command lines that make what commands need, in their order; the rest is made by hand."""
    lines: list[tuple[str, ...]] = []

    def need(artefact: str) -> None:
        if artefact not in _MAKERS:
            return
        arguments, needs = _MAKERS[artefact]
        for other in needs:
            need(other)
        if arguments not in lines:
            lines.append(arguments)
            if artefact == "calibrated.flaw":
                lines.append(("calibrate", artefact, *COMMANDS["calibrate"].arguments[2:]))

    for name in names:
        for artefact in COMMANDS[name].needs:
            need(artefact)
    return lines


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
    rows, columns = np.mgrid[:64, :64]
    disc = ((rows - 30) ** 2 + (columns - 34) ** 2 < 10**2).astype(np.uint8)
    cv2.imwrite(str(folder / "mask.png"), disc * 255)


def run_command(arguments: tuple[str, ...], data: Path) -> int:
    """Run a command line as the console script does, or MODULE:FUNCTION; return its exit status."""
    if ":" in arguments[0]:
        module, _, function = arguments[0].partition(":")
        getattr(importlib.import_module(module), function)(*map(Path, arguments[1:]))
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


_OF_EXPORT = ("torch.onnx", "torch.export", "torch._dynamo", "torch._inductor", "onnxscript")


def preload() -> None:
    """Import what the commands import, before processes are forked; none of it may begin a thread."""
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
    for name in (
        "onnxruntime",
        "onnx",
        "scipy.stats",
        "matplotlib.pyplot",
        "sklearn.metrics",
        "tokenizers",
        *_OF_EXPORT,
    ):
        importlib.import_module(name)
