"""What is fuzzed: for each target its cases, and what is done with one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flawscope.bundle import open_bundle
from flawscope.imaging.image_facts import facts_of
from flawscope.imaging.image_headers import read_header
from flawscope.imaging.images import Preprocessing, decode_image, decode_stored, prepare, read_image
from flawscope.imaging.masks import decode_mask
from flawscope.runtime import Inspector
from fuzzing.cases import INPUT, Case, read_options
from fuzzing.guard import Finding

_PREPARED = Preprocessing((32, 24))


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        cases: `(folder with the seeds, bait outside) -> strategy`.
        work: Tries the case that lies in a folder; raises Finding for a success that is none.
    """

    cases: Callable[[Path, Path], st.SearchStrategy[Case]]
    work: Callable[[Path], None]


def try_bundle(folder: Path) -> None:
    """Open and verify a bundle, make it ready, and score its golden image."""
    path = folder / INPUT
    bundle = open_bundle(path)  # which verifies it
    try:
        total = sum(entry.size for entry in bundle.manifest.files.values())
        if path.is_file() and total > path.stat().st_size:
            raise Finding("inconsistent", f"{path.stat().st_size} bytes open as {total}", "sizes")
        inspector = Inspector.load(bundle, "cpu", read_options(folder).get("path", "auto"))
    except BaseException:
        bundle.close()
        raise
    with inspector:
        manifest = inspector.manifest
        result = inspector(decode_image(inspector.bundle.read(manifest.golden[0].file)))
        # The golden image was computed at load, so that it cannot be a fault of the bundle now.
        golden = manifest.golden[0]
        if manifest.tiling is None and (
            result.score is None or abs(result.score - golden.score) > 1.0 + abs(golden.score)
        ):
            raise Finding(
                "inconsistent", f"golden score {golden.score}, then {result.score}: {result.reason}", "golden"
            )
        if result.score is not None and result.anomaly_map is None:
            raise Finding("inconsistent", "a score without a map", "map")


def try_image(folder: Path) -> None:
    """Decode an image in every way, and prepare it."""
    path = folder / INPUT
    data = path.read_bytes()
    stored = decode_stored(data)
    header = read_header(data)
    facts_of(data, stored)
    image = decode_image(data)
    if header is None or image.shape != (header.height, header.width, 3) or image.dtype != np.uint8:
        raise Finding("inconsistent", f"{header}, got {image.dtype} {image.shape}", "shape")
    if not np.array_equal(image, read_image(path)):
        raise Finding("inconsistent", "decoded twice, it has other pixels", "pixels")
    if decode_mask(data).shape != image.shape[:2]:
        raise Finding("inconsistent", "the mask has another size", "mask")
    prepare(image, _PREPARED)


def _bundle_target(name: str) -> Target:
    def cases(folder: Path, bait: Path) -> st.SearchStrategy[Case]:
        # Lazy: images need no onnx.
        from fuzzing import bundle_cases

        # By name: a few cases take the first one alone, which has a graph and nothing else (`brightness`).
        seeds = tuple(bundle_cases.Seed(seed, bait) for seed in sorted(folder.iterdir()))
        strategies: dict[str, Any] = {
            "manifest": bundle_cases.manifests,
            "zip": bundle_cases.zips,
            "safetensors": bundle_cases.banks,
            "onnx": bundle_cases.graphs,
        }
        strategy: st.SearchStrategy[Case] = strategies[name](seeds)
        return strategy

    return Target(cases, try_bundle)


def _image_cases(folder: Path, bait: Path) -> st.SearchStrategy[Case]:
    from fuzzing.image_cases import image_seeds, images

    return images(image_seeds())


def target_named(name: str) -> Target:
    """Return a target of the table, or one of another module, `MODULE:ATTRIBUTE`."""
    if ":" not in name:
        return TARGETS[name]
    module, _, attribute = name.partition(":")
    target: Target = getattr(importlib.import_module(module), attribute)
    return target


BUNDLES = ("manifest", "zip", "safetensors", "onnx")
"""Targets that are bundles; they need seeds."""

TARGETS = {
    **{name: _bundle_target(name) for name in BUNDLES},
    "image": Target(_image_cases, try_image),
}
"""Name -> target."""
