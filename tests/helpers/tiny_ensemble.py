"""Ensembles of the tiny bundle: members whose map is the brightness times a factor, combined by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper
from tiny_bundle import SIDE, brightness_graph, tiny_manifest, tiny_sources

from flawscope.bundle import EnsembleHead, EnsembleMember, Golden, Manifest, open_bundle, write_bundle

GOLDEN_SCORE = 200.0
"""Brightness of the brightest pixel of the golden image, which is its score with factor 1."""


def scaled_graph(factor: float) -> bytes:
    """Return the graph of the tiny bundle with maps and scores times a factor."""
    model = onnx.load_from_string(brightness_graph())
    mean = next(node for node in model.graph.node if node.op_type == "ReduceMean")
    mean.output[0] = "brightness"
    place = list(model.graph.node).index(mean) + 1
    model.graph.node.insert(place, helper.make_node("Mul", ["brightness", "factor"], ["anomaly_map"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def write_member(path: Path, factor: float, known: bytes | None = None, **changes: Any) -> Path:
    """Write a bundle whose scores are those of the tiny bundle times a factor, and return its path.

    Args:
        path: Folder to make; its name is the bundle's.
        factor: A power of two keeps everything exact.
        known: The bytes of `images.json`, or None for no images.
        **changes: Manifest fields to set differently.
    """
    sources = {**tiny_sources(), "score.onnx": scaled_graph(factor)}
    if known is not None:
        sources["images.json"] = known
    golden = (Golden("golden/0.png", factor * GOLDEN_SCORE, factor * GOLDEN_SCORE),)
    write_bundle(path, tiny_manifest(**{"name": path.stem, "golden": golden, **changes}), sources)
    return path


def member_of(path: Path, weight: float, center: float, spread: float) -> EnsembleMember:
    """Return the entry of a member with one center and spread for maps and scores."""
    with open_bundle(path) as bundle:
        manifest = bundle.manifest
    return EnsembleMember(manifest.name, manifest.digest, manifest.method, weight, center, spread, center, spread)


def ensemble_sources(paths: list[Path]) -> dict[str, Path | bytes]:
    """Return the files of an ensemble of bundle folders."""
    sources: dict[str, Path | bytes] = {"images.json": b'{"training": [], "held_out": []}\n'}
    for path in paths:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                sources[f"members/{path.stem}/{file.relative_to(path).as_posix()}"] = file
    return sources


def write_tiny_ensemble(
    path: Path,
    members: dict[Path, EnsembleMember],
    golden: float | None = None,
    sources: dict[str, Path | bytes] | None = None,
    **changes: Any,
) -> Manifest:
    """Write an ensemble folder by hand and return its manifest.

    Args:
        path: Folder to make.
        members: Bundle folder → its entry.
        golden: Score and map maximum of the golden image; None for no golden image.
        sources: Files that replace or join the others.
        **changes: Manifest fields to set differently.
    """
    folder = next(iter(members)).stem
    manifest = msgspec.structs.replace(
        tiny_manifest(),
        name="tiny",
        method="ensemble",
        graphs={},
        bank=None,
        head=EnsembleHead(tuple(members.values()), 20),
        golden=() if golden is None else (Golden(f"members/{folder}/golden/0.png", golden, golden),),
    )
    files = {**ensemble_sources(list(members)), **(sources or {})}
    return write_bundle(path, msgspec.structs.replace(manifest, **changes), files)


def flat_image(value: int) -> np.ndarray:
    """Return an image of one brightness, uint8 [16, 16, 3]."""
    return np.full((SIDE, SIDE, 3), value, np.uint8)
