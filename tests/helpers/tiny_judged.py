"""A dataset, a support set and generated sets that `flawscope synth judge` can judge in seconds.

Parts are grey and mottled. A `spot` is a bright square, a `tint` a slightly reddish one. The support set has one spot,
so that a segmenter without synthetic images has never seen a tint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tiny_dataset import write_rgb

from flawscope.config import SegmenterConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.drawn_set import LINES, StoredFile
from flawscope.datasets.defects.set_files import write_image, write_json, write_lines, write_mask
from flawscope.datasets.defects.support_set import write_support
from flawscope.files import sha256_file
from flawscope.imaging.crops import Crop
from flawscope.runtime.synthesis import (
    GeneratedImage,
    GenerateRecord,
    Verdict,
    summarise,
)
from flawscope.runtime.synthesis.generated_set import RecordedOptions, RecordedSettings

SIDE = 32
Image, Mask = npt.NDArray[np.uint8], npt.NDArray[np.bool_]
SETTINGS: dict[str, Any] = {
    "resize": SIDE,
    "stages": [1, 2],
    "width": 16,
    "batch_size": 8,
    "epoch_batches": 10,
    "learning_rate": 0.02,
    "warmup_steps": 5,
    "ema": 0.8,
    "top": 20,
    "num_workers": 1,
    "device": "cpu",
    "held_out": 0.2,
    "held_out_minimum": 2,
    "validation": 0.2,
}
STEPS = 50
QUICK = ["--steps", str(STEPS)] + [
    part for name, value in SETTINGS.items() for part in ("--set", f"{name}={json.dumps(value)}")
]


def quick_config(**changes: Any) -> SegmenterConfig:
    """Return settings of a segmenter that is trained in a second, as `QUICK` asks for them."""
    built, _ = build_config("segmenter", SETTINGS, {"epochs": 5, "max_steps": STEPS}, changes)
    assert isinstance(built, SegmenterConfig)
    return built


def part(number: int, defect: str | None = None) -> tuple[Image, Mask]:
    chance = np.random.default_rng((number, len(defect or "")))
    image = chance.integers(90, 130, (SIDE, SIDE, 3)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), np.bool_)
    if defect is not None:
        row, column = chance.integers(2, SIDE - 12, 2)
        mask[row : row + 9, column : column + 9] = True
        image[mask] = 230 if defect == "spot" else np.clip(image[mask] + np.array([25, 0, -25]), 0, 255)
    return image, mask


class Drawing(NamedTuple):
    """An image of a generated set, and the normal image it was drawn on."""

    defect: str
    image: Image
    mask: Mask
    good: Path
    accepted: bool = True


def write_generated(folder: Path, root: Path, drawings: Sequence[Drawing], support: Sequence[str]) -> Path:
    """Write a folder as `synth generate` leaves it, with boxes one pixel wider than the masks."""
    lines = []
    for number, one in enumerate(drawings):
        box = np.zeros_like(one.mask)
        rows, columns = np.nonzero(one.mask)
        box[rows.min() - 1 : rows.max() + 2, columns.min() - 1 : columns.max() + 2] = True
        files = {}
        for name, pixels in (("image", one.image), ("mask", one.mask), ("box_mask", box)):
            place = f"part/{name}/{one.defect}/{number:03d}.png"
            (write_mask if pixels.dtype == np.bool_ else write_image)(folder / place, pixels)  # type: ignore[operator]
            files[name] = StoredFile(place, sha256_file(folder / place))
        lines.append(
            GeneratedImage(
                number=number,
                round=1,
                category="part",
                defect=one.defect,
                accepted=one.accepted,
                image=files["image"],
                mask=files["mask"] if one.accepted else None,
                box_mask=files["box_mask"] if one.accepted else None,
                good=one.good.relative_to(root).as_posix(),
                good_sha256=sha256_file(one.good),
                box="box.png",
                bbox=(1, 1, 2, 2),
                runs=(),
                text=one.defect,
                seed=number,
                crop=Crop(0, 0, SIDE, SIDE, (SIDE, SIDE)),
                bundle="drawer",
                digest="0" * 64,
                backend="cpu",
                precision="fp32",
                batch=1,
                options=RecordedOptions(),
                verdict=Verdict(() if one.accepted else ("faint",), ()),
            )
        )
    record = GenerateRecord(
        flawscope="0",
        bundle="drawer",
        digest="0" * 64,
        method="embedding",
        mode="blend",
        licence="none",
        backend="cpu",
        backend_reason="asked for",
        precision="fp32",
        settings=RecordedSettings(),
        lines={},
        summary=summarise(line.verdict for line in lines),
        defects={},
        seconds=0.0,
        seconds_per_picture=0.0,
        seconds_per_accepted=None,
        peak_memory_kib=None,
        versions={},
        support=tuple(support),
        support_in_test=0,
    )
    write_lines(folder / "generated.jsonl", lines)
    write_json(folder / "generate.json", record)
    return folder


def with_textures(folder: Path, out: Path, textures: Sequence[Path]) -> Path:
    """Copy a folder of drawn images, whose first lines then name these images as their textures."""
    shutil.copytree(folder, out)
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    for line, texture in zip(lines, textures, strict=False):
        line["texture_sha256"] = sha256_file(texture)
    write_lines(out / LINES, lines)
    return out


class Place(NamedTuple):
    """Where everything lies, the drawings of the set that helps, and what the support set was taken from.

    `spot` is its image below the dataset's root, `seen` its content.
    """

    root: Path
    support: Path
    helpful: Path
    noise: Path
    drawings: list[Drawing]
    seen: list[str]
    spot: str


def write_place(folder: Path) -> Place:
    """Write the dataset, the support set and both generated sets."""
    root = folder / "data" / "part"
    for number in range(12):
        write_rgb(root / "train" / "good" / f"{number:03d}.png", part(number)[0])
    for number in range(6):
        write_rgb(root / "test" / "good" / f"{number:03d}.png", part(100 + number)[0])
        for defect in ("spot", "tint"):
            image, mask = part(200 + number, defect)
            write_rgb(root / "test" / defect / f"{number:03d}.png", image)
            grey = np.repeat((mask.astype(np.uint8) * np.uint8(255))[..., None], 3, axis=2)
            write_rgb(root / "ground_truth" / defect / f"{number:03d}_mask.png", grey)
    support = folder / "support"
    record = write_support(open_dataset(root), support, shots=1, split="test", defects=("spot",))
    seen = sorted(record.contents)
    goods = sorted((root / "train" / "good").glob("*.png"))
    drawings = [
        Drawing(defect, *part(300 + number, defect), goods[number % 12])
        for number in range(12)
        for defect in ("spot", "tint")
    ]
    chance = np.random.default_rng(0)
    noise = []
    for number in range(24):
        # Defects that cannot be seen, marked somewhere: what learns from them believes in nothing.
        mask = np.zeros((SIDE, SIDE), np.bool_)
        row, column = chance.integers(2, SIDE - 12, 2)
        mask[row : row + 8, column : column + 8] = True
        noise.append(Drawing("spot", part(400 + number)[0], mask, goods[number % 12]))
    return Place(
        root,
        support,
        write_generated(folder / "helpful", root, drawings, seen),
        write_generated(folder / "noise", root, noise, seen),
        drawings,
        seen,
        record.pictures[0].source,
    )


def arguments(place: Place, generated: Path, out: Path, *more: str, first: tuple[str, ...] = ()) -> list[str]:
    """Return a command line of the benchmark; `first` are arms before that of `generated`."""
    data = ["--data", str(place.root), "--support", str(place.support), "--out", str(out), "--seeds", "0"]
    return ["synth", "judge", *first, str(generated), *data, *QUICK, *more]
