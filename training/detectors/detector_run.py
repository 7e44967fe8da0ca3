"""The run: a folder with `run.json`, `weights.safetensors` and a few sample pictures."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import safetensors
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from flawscope.arrays import UInt8Array
from flawscope.config import AutoencoderConfig, DdadConfig, DsadConfig, PadimConfig, PatchcoreConfig, StfpmConfig
from flawscope.errors import RunError
from flawscope.files import atomic_folder
from flawscope.imaging.tiles import Picture, read_picture
from flawscope.runs import RECORD, SAMPLES, WEIGHTS, RunRecord, encode_record, read_run_record
from flawscope.training.detectors.ddad_extractor import FOLDER as EXTRACTOR
from flawscope.training.detectors.dsad import restore_dsad
from flawscope.training.detectors.stfpm import StfpmNetwork
from flawscope.training.diffusion.comparison import Comparison
from flawscope.training.diffusion.torch_reconstruction import Reconstruction, TorchNetworks
from flawscope.training.diffusion.unet import Denoiser
from flawscope.training.features.backbone import Backbone, restore_backbone
from flawscope.training.features.patch_extraction import standardization
from flawscope.training.features.patch_features import PatchFeatures
from flawscope.training.loop.fit_result import Fitted
from flawscope.training.loop.loop import METRICS, PREVIEWS
from flawscope.training.loop.network_state import load_state

_SAMPLE_SIDE_PX = 1024

Module = PatchFeatures | StfpmNetwork | Reconstruction
"""What scores pictures in torch."""


@dataclass(frozen=True)
class Run:
    """A run that was read back: its record, what was fitted, the module that is exported and the sample pictures."""

    path: Path
    record: RunRecord
    digest: str
    fitted: Fitted
    module: Module
    samples: tuple[Path, ...]


def build_features(config: PatchcoreConfig | PadimConfig, backbone: Backbone, fitted: Fitted) -> PatchFeatures:
    """Return the feature module of a fitted detector."""
    return PatchFeatures(
        backbone,
        pool=isinstance(config, PatchcoreConfig),
        upsample=config.patches.upsample,
        channels=fitted.channels,
        transform=None if fitted.transform is None else torch.from_numpy(fitted.transform),
    )


def write_run(
    path: Path,
    record: RunRecord,
    fitted: Fitted,
    backbone: Backbone,
    samples: Sequence[Picture],
    notes: Path | None = None,
) -> None:
    """Write a run whole, or not at all; `notes` is a folder of the training whose metrics and previews come along."""
    # An autoencoder has needed its backbone for the loss alone.
    has_backbone = not isinstance(record.config, AutoencoderConfig)
    kept = backbone.network.state_dict() if has_backbone else {}
    arrays = {f"backbone.{name}": value.cpu().numpy() for name, value in kept.items()}
    arrays |= {f"bank.{name}": value for name, value in fitted.tensors.items()}
    arrays |= {
        f"{network}.{name}": value.cpu().numpy()
        for network, state in fitted.networks.items()
        for name, value in state.items()
    }
    if fitted.transform is not None:
        arrays["transform"] = fitted.transform
    # safetensors writes an array's memory as it lies: one in column order would come back transposed.
    tensors = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    with atomic_folder(path, replace_if=RECORD) as folder:
        try:
            safetensors.numpy.save_file(tensors, folder / WEIGHTS)
        except SafetensorError as err:  # its writer reports a full disk in its own type
            raise OSError(str(err)) from err
        (folder / SAMPLES).mkdir()
        for index, sample in enumerate(samples):
            (folder / SAMPLES / f"{index:03d}.png").write_bytes(encode_sample(read_picture(sample)))
        if notes is not None:
            for part in (Path(), *([Path(EXTRACTOR)] if (notes / EXTRACTOR).is_dir() else [])):
                (folder / part).mkdir(exist_ok=True)
                shutil.copy2(notes / part / METRICS, folder / part / METRICS)
                shutil.copytree(notes / part / PREVIEWS, folder / part / PREVIEWS)
        (folder / RECORD).write_bytes(encode_record(record))


def encode_sample(image: UInt8Array) -> bytes:
    """Encode a picture as PNG, made smaller where a side is above the limit: samples travel in bundles."""
    scale = _SAMPLE_SIDE_PX / max(image.shape[:2])
    if scale < 1:
        size = (max(8, round(image.shape[1] * scale)), max(8, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes())


def read_run(path: Path) -> Run:
    """Read a run back.

    Raises:
        RunError: If it is missing, unfitted, broken, or written by a newer version.
    """
    record, data = read_run_record(path)
    try:
        tensors = safetensors.numpy.load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as err:
        raise RunError(f"{path / WEIGHTS}: expected the weights of the run, got {err}. Train again.") from err
    bank = {name.removeprefix("bank."): value for name, value in tensors.items() if name.startswith("bank.")}
    if isinstance(record.config, AutoencoderConfig):
        raise RunError(f"{path}: expected the run of a detector, got an autoencoder. It is used by train dsad.")
    _check_fitted(path, record, bank)
    is_projected = isinstance(record.config, PadimConfig) and record.config.reduction == "ortho"
    if (is_projected or standardization(record.config) != "none") and "transform" not in tensors:
        raise RunError(f"{path}: expected a fitted detector, got a run without its channel transform. Train again.")
    _check_finite(path, tensors)
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        network, dot, rest = name.partition(".")
        if dot and network != "bank":
            states.setdefault(network, {})[rest] = torch.from_numpy(value)
    backbone = restore_backbone(record.config.features, states.pop("backbone", {}))
    fitted = Fitted(
        grid=record.grid,
        tensors=bank,
        transform=tensors.get("transform"),
        channels=record.channels,
        facts=record.facts,
        networks=states,
        rule=record.rule,
        unet=record.unet,
    )
    return Run(
        path=path,
        record=record,
        digest=hashlib.sha256(data).hexdigest(),
        fitted=fitted,
        module=restore_module(path, record, backbone, fitted),
        samples=tuple(sorted((path / SAMPLES).glob("*.png"))),
    )


def restore_module(path: Path, record: RunRecord, backbone: Backbone, fitted: Fitted) -> Module:
    """Return what scores pictures in torch, with the weights of a run.

    Raises:
        RunError: If the run is no detector, or a network's weights do not fit.
    """
    config = record.config
    if isinstance(config, StfpmConfig):
        student = restore_backbone(config.features, fitted.networks.get("student", {}))
        return StfpmNetwork(backbone, student, config.preprocessing.size, config.maps.sigma)
    if isinstance(config, DdadConfig):
        assert fitted.rule is not None, "checked before"
        denoiser = Denoiser(config)
        load_state(denoiser, fitted.networks.get("denoiser", {}), f"{path}: denoiser")
        networks = TorchNetworks(denoiser, Comparison(backbone, config.pixel_map, config.smoothing))
        return Reconstruction(networks, config.sampling, fitted.tensors["noise"].astype(np.float32), fitted.rule)
    if isinstance(config, DsadConfig):
        return restore_dsad(config, backbone, fitted, str(path))
    assert isinstance(config, PatchcoreConfig | PadimConfig), "an autoencoder is refused before"
    return build_features(config, backbone, fitted)


def _check_fitted(
    path: Path, record: RunRecord, bank: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
) -> None:
    config = record.config
    if isinstance(config, StfpmConfig):
        return  # a student that lacks tensors is refused where it is restored
    if isinstance(config, DdadConfig | DsadConfig):
        needed = {"noise"}
        if record.rule is None or (isinstance(config, DsadConfig) and record.unet is None):
            raise RunError(f"{path}: expected a trained detector, got a run without its map rule. Train it first.")
    elif isinstance(config, PadimConfig):
        needed = {"mean", "whitening"}
    else:
        assert isinstance(config, PatchcoreConfig), "an autoencoder is refused before"
        needed = {"bank", "neighbours"} if config.reweight == "paper" and config.neighbors > 1 else {"bank"}
    if missing := needed - bank.keys():
        raise RunError(f"{path}: expected a fitted detector, got a run without {sorted(missing)[0]}. Train it first.")


def _check_finite(path: Path, tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> None:
    for name, value in tensors.items():
        if value.size == 0 or not np.isfinite(value).all():
            what = "an empty array" if value.size == 0 else "NaN or infinity"
            raise RunError(f"{path}: {name}: expected finite numbers, got {what}. Train again.")
