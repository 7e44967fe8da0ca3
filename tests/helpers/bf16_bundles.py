"""Bundles that have BF16 without an export: the graphs of FP32, and golden scores as they are told."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flawscope.bundle import Golden, Precision, open_bundle, rewrite_manifest


def with_bf16(bundle: Path, out: Path, golden: Sequence[Golden] | None = None) -> Path:
    """Copy a bundle folder and give it BF16, ungated; its golden scores are those of FP32 unless others are given."""
    shutil.copytree(bundle, out)
    with open_bundle(out) as opened:
        manifest = opened.manifest
    scores = manifest.golden if golden is None else tuple(golden)
    precision = Precision(dict(manifest.graphs), scores, "by hand", calibration_images=0, quantised=0, kept=())
    rewrite_manifest(out, msgspec.structs.replace(manifest, precisions={**manifest.precisions, "bf16": precision}))
    return out
