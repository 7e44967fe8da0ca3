"""The run: a folder with `run.json`, `weights.safetensors` and a few sample images."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from flawscope.arrays import UInt8Array
from flawscope.config import FeatureSettings, find_part
from flawscope.datasets.drawn_defects import draw_defect
from flawscope.errors import RunError
from flawscope.files import atomic_folder
from flawscope.imaging.png import encode_png
from flawscope.imaging.tiles import ImageSource, read_source
from flawscope.open_files import list_folder, regular_folder, regular_path
from flawscope.runs import RECORD, RUN_ENTRIES, SAMPLES, WEIGHTS, RunRecord, encode_record, read_run_record
from flawscope.training.detectors.ddad_extractor import FOLDER as EXTRACTOR
from flawscope.training.features.backbone import Backbone, empty_backbone, restore_backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.loop import METRICS, PREVIEWS
from flawscope.training.trainer import trainer_of

_SAMPLE_SIDE_PX = 1024


@dataclass(frozen=True)
class Run:
    """A run that was read back.

    Attributes:
        path: Its folder.
        record: Contents of `run.json`.
        digest: SHA-256 of `run.json`.
        fitted: The fit result.
        module: Scores images in torch; restored by the method's trainer, expected by its exporter.
        samples: Sample images.
    """

    path: Path
    record: RunRecord
    digest: str
    fitted: FitResult
    module: Any
    samples: tuple[Path, ...]


def write_run(
    path: Path,
    record: RunRecord,
    fit_result: FitResult,
    backbone: Backbone,
    samples: Sequence[ImageSource],
    workspace: Path | None = None,
    *,
    are_learned: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a run atomically; metrics and previews come from the workspace, if the method has one.

    Args:
        path: The folder.
        record: The record.
        fit_result: The fit.
        backbone: The backbone.
        samples: Sample images that the run keeps, for parity checks and golden images.
        workspace: The workspace.
        are_learned: The detector may keep these samples whole, so a stain is drawn on each.
        overwrite: Whether an earlier run there may be replaced.

    Raises:
        ArgumentError: If `path` is taken; with `overwrite`, by something other than a run.
        StorageError: If the system refuses to write.
    """
    weights = backbone.network.state_dict() if trainer_of(record.config).keeps_backbone else {}
    arrays = {f"backbone.{name}": value.cpu().numpy() for name, value in weights.items()}
    arrays |= {f"bank.{name}": value for name, value in fit_result.tensors.items()}
    arrays |= {
        f"{network}.{name}": value.cpu().numpy()
        for network, state in fit_result.networks.items()
        for name, value in state.items()
    }
    if fit_result.transform is not None:
        arrays["transform"] = fit_result.transform
    # safetensors writes an array's memory as it lies: one in column order would be read back with its values mixed up.
    tensors = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    with atomic_folder(path, replace_if=RECORD, overwrite=overwrite, own=RUN_ENTRIES, durable=True) as folder:
        try:
            safetensors.numpy.save_file(tensors, folder / WEIGHTS)
        except SafetensorError as err:  # its writer has its own type for a full disk
            raise OSError(str(err)) from err
        (folder / SAMPLES).mkdir()
        bits = record.config.preprocessing.bits
        for index, sample in enumerate(samples):
            image = read_source(sample, bits)
            if are_learned:
                # What was learned by heart has a score of rounding errors, with which nothing can be compared.
                drawn = draw_defect(image, "stain", 1.0, np.random.default_rng([record.config.seed, index]))
                image = image if drawn is None else drawn[0]
            (folder / SAMPLES / f"{index:03d}.png").write_bytes(encode_sample(image))
        if workspace is not None:
            # Copied, not moved: should writing fail, the workspace must still be whole to resume from.
            for part in (Path(), *([Path(EXTRACTOR)] if (workspace / EXTRACTOR).is_dir() else [])):
                (folder / part).mkdir(exist_ok=True)
                shutil.copy2(regular_path(workspace / part / METRICS), folder / part / METRICS)
                shutil.copytree(regular_folder(workspace / part / PREVIEWS), folder / part / PREVIEWS)
        (folder / RECORD).write_bytes(encode_record(record))


def encode_sample(image: UInt8Array) -> bytes:
    """Encode an image as PNG, shrunk if a side is above the limit: samples become part of bundles."""
    scale = _SAMPLE_SIDE_PX / max(image.shape[:2])
    if scale < 1:
        size = (max(8, round(image.shape[1] * scale)), max(8, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return encode_png(image)


def sample_files(run: Path) -> tuple[Path, ...]:
    """Return the sample images of a run, which may have none.

    Raises:
        DataError: If their folder cannot be listed.
    """
    folder = run / SAMPLES
    return tuple(path for path in list_folder(folder) if path.suffix == ".png") if folder.is_dir() else ()


def read_run(path: Path) -> Run:
    """Read a run back.

    Raises:
        RunError: If it is missing, unfitted, broken, or written by a newer version.
    """
    record, data = read_run_record(path)
    try:
        tensors = safetensors.numpy.load_file(regular_path(path / WEIGHTS))
    except (SafetensorError, OSError) as err:
        raise RunError(f"{path / WEIGHTS}: expected the weights of the run, got {err}. Train again.") from err
    bank = {name.removeprefix("bank."): value for name, value in tensors.items() if name.startswith("bank.")}
    trainer = trainer_of(record.config)
    if not trainer.is_detector:
        raise RunError(f"{path}: expected the run of a detector, got an {record.kind}. It is used by train dsad.")
    # Before the tensors are used: an unfitted run is reported as such, not as a KeyError of the restoring trainer.
    trainer.check(path, record, bank)
    if trainer.needs_transform(record.config) and "transform" not in tensors:
        raise RunError(f"{path}: expected a fitted detector, got a run without its channel transform. Train again.")
    _check_finite(path, tensors)
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        network, dot, rest = name.partition(".")  # `transform` has no dot
        if dot and network != "bank":
            states.setdefault(network, {})[rest] = torch.from_numpy(value)
    features, state = find_part(record.config, FeatureSettings), states.pop("backbone", {})
    backbone = empty_backbone()[0] if features is None else restore_backbone(features, state)
    fit_result = FitResult(
        grid=record.grid,
        tensors=bank,
        transform=tensors.get("transform"),
        channels=record.channels,
        facts=record.facts,
        networks=states,
        rule=record.rule,
        unet=record.unet,
        places=record.places,
        defects=record.defects,
        defect_images=record.defect_images,
    )
    return Run(
        path=path,
        record=record,
        digest=hashlib.sha256(data).hexdigest(),
        fitted=fit_result,
        module=trainer.restore(path, record, backbone, fit_result),
        samples=sample_files(path),
    )


def _check_finite(path: Path, tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> None:
    for name, value in tensors.items():
        if value.size == 0 or not np.isfinite(value).all():
            got = "an empty array" if value.size == 0 else "NaN or infinity"
            raise RunError(f"{path}: {name}: expected finite numbers, got {got}. Train again.")
