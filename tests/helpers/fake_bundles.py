"""A bundle whose files are real and whose graph is not, and an inspector that scores images by a plain rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.bundle import (
    Bundle,
    Graph,
    ImageHashes,
    Manifest,
    PadimHead,
    Parity,
    Provenance,
    Thresholds,
    open_bundle,
    thresholds_in_force,
    write_bundle,
)
from flawscope.bundle.manifest import Evidence
from flawscope.cross_scores import CrossScores
from flawscope.errors import FlawscopeError
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.runtime import Result
from flawscope.runtime.decision import decide, find_boxes

Rule = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def brightness(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The map is the brightness: uint8 [H, W, 3] -> float32 [H, W]."""
    return image.mean(axis=2, dtype=np.float32)


def write_fake_bundle(
    path: Path,
    *,
    training: Sequence[str] = (),
    held_out: Sequence[str] = (),
    cross: CrossScores | None = None,
    thresholds: Thresholds | None = None,
    size: tuple[int, int] = (32, 32),
    category: str = "part",
) -> Path:
    """Write a bundle folder that opens and verifies."""
    manifest = Manifest(
        name=f"{category}-padim",
        kind="score",
        method="padim",
        flawscope="0",
        input=Preprocessing(resize=size),
        max_batch=4,
        graphs={"score": Graph("score.onnx", ("anomaly_map", "score"), "x", 1, 1)},
        bank="bank.safetensors",
        head=PadimHead((8, 8), 1.0),
        golden=(),
        provenance=Provenance(
            created="2026-01-01T00:00:00+00:00",
            command="flawscope export run --out part.flaw",
            run="0" * 64,
            dataset="1" * 64,
            category=category,
            seed=0,
            versions={"numpy": "2.0"},
            config={},
            weights="scattering (fixed filters)",
            images="images.json",
        ),
        files={},
        thresholds=thresholds,
        evidence=Evidence(parity=(Parity("torch", "score.onnx (cpu)", 8, 1.2e-6, 2.3e-6, 1.0),)),
    )
    hashes = ImageHashes(tuple(training), tuple(held_out), cross).encode()
    write_bundle(
        path, manifest, {"score.onnx": b"graph", "bank.safetensors": b"bank", "images.json": hashes}, overwrite=True
    )
    return path


class FakeInspector:
    """Stands in for `flawscope.runtime.Inspector`: the map follows a rule, the score is its maximum."""

    backend = "cpu"
    backend_reason = "asked for"

    def __init__(
        self,
        bundle: Bundle,
        rule: Rule = brightness,
        path: str = "graph",
        precision: str = "fp32",
        **overlay: Any,
    ) -> None:
        self.bundle = bundle
        self.path = path
        self.precision = precision
        self.manifest = bundle.manifest
        self.in_force = thresholds_in_force(bundle.path, bundle.manifest, precision, **overlay)
        self.thresholds = self.in_force.thresholds
        self.rule = rule

    @classmethod
    def loader(cls, rule: Rule = brightness) -> Callable[..., FakeInspector]:
        """Return what replaces `load_inspector`."""
        return lambda path, backend, graph_path="graph", precision="fp32", *, product=None, **overlay: cls(
            open_bundle(path), rule, graph_path, precision, **overlay
        )

    def stream(self, sources: Iterable[Path], batch: int = 1) -> Iterator[Result]:
        """Yield one result a file."""
        thresholds = self.thresholds
        for source in sources:
            try:
                image = read_image(source)
            except FlawscopeError as err:
                yield Result(str(source), "fault", reason=str(err))
                continue
            anomaly_map = self.rule(prepare(image, self.manifest.input))
            score = float(anomaly_map.max())
            decision, reason = decide(score, anomaly_map, thresholds)
            boxes = ()
            if thresholds is not None and decision != "fault":
                spec, area = self.manifest.input, self.manifest.min_area_px
                boxes = find_boxes(anomaly_map, thresholds.pixel.value, area, spec, image.shape[:2])
            value = None if thresholds is None else thresholds.image.value
            yield Result(
                str(source),
                decision,
                score if np.isfinite(score) else None,
                value,
                reason,
                anomaly_map,
                boxes,
                {"total": 2.0},
            )

    def __enter__(self) -> FakeInspector:
        return self

    def __exit__(self, *_: object) -> None:
        self.bundle.close()


def write_image(path: Path, background: int, spot: int | None = None, size: int = 32) -> Path:
    """Write a grey image, with a square of another brightness where `spot` is given, and return its path."""
    image = np.full((size, size, 3), background, np.uint8)
    if spot is not None:
        image[8:16, 8:16] = spot
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def write_mask(path: Path, size: int = 32) -> Path:
    """Write the mask of the square that `write_image` draws."""
    mask = np.zeros((size, size), np.uint8)
    mask[8:16, 8:16] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), mask)
    return path
