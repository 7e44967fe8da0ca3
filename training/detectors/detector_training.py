"""The training pipeline, top to bottom: dataset → held-out split → fit → run folder."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import flawscope
from flawscope.config import (
    AutoencoderConfig,
    DdadConfig,
    DsadConfig,
    MethodConfig,
    PadimConfig,
    PatchcoreConfig,
    StfpmConfig,
    TrainedConfig,
    flatten,
)
from flawscope.datasets import Dataset, Sample, fingerprint, hash_contents, split_held_out
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.files import check_replaceable, storage_errors
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD, AnyConfig, RunRecord
from flawscope.training.detectors.ddad import AFTER_DENOISER, train_ddad
from flawscope.training.detectors.detector_run import Run, write_run
from flawscope.training.detectors.dsad import autoencoder_identity, train_dsad
from flawscope.training.detectors.padim import fit_padim
from flawscope.training.detectors.patchcore import fit_patchcore
from flawscope.training.detectors.stfpm import train_stfpm
from flawscope.training.diffusion.autoencoder import train_autoencoder
from flawscope.training.features.backbone import Backbone, build_backbone
from flawscope.training.features.patch_extraction import choose_device
from flawscope.training.loop.fit_result import Fitted
from flawscope.training.loop.image_batches import pictures_of
from flawscope.training.loop.loop import METRICS, PREVIEWS
from flawscope.training.loop.tensorboard import BOARD
from flawscope.training.loop.workspace import unfinished
from flawscope.versions import package_versions

_SAMPLES = 8
"""Pictures stored in the run for parity checks and golden images."""


def train_detector(
    config: MethodConfig,
    dataset: Dataset,
    out: Path,
    *,
    weights: Path | None = None,
    resume: bool = False,
    ready: Run | None = None,
    command: str = "",
    progress: Progress = no_progress,
) -> RunRecord:
    """Fit a detector on the good training pictures of a dataset and write the run.

    Args:
        config: Settings of the method.
        dataset: Its `train_good` pictures are used, nothing else.
        out: Run folder to write; an earlier run there is replaced.
        weights: Safetensors file of the backbone, or None for the hub.
        resume: Go on with a training that was interrupted; for methods that have epochs.
        ready: A run of ddad whose denoiser is taken instead of training one: the extractor alone learns. It may be the
            one at `out`.
        command: Command line for the record.
        progress: Told what is being done.

    Raises:
        ArgumentError: If settings do not fit the backbone or each other.
        DataError: If pictures are missing or broken.
        RunError: If weights cannot be had, or `ready` is not whole.
        StorageError: If the run cannot be written.
    """
    if not isinstance(config, AnyConfig):
        raise ArgumentError(f"config: expected settings of a detector, got {type(config).__name__}.")
    if resume and not isinstance(config, TrainedConfig):
        raise ArgumentError(
            "resume: expected a method that is trained in epochs, got one that is fitted. Leave it out."
        )
    if ready is not None:
        _check_ready(config, ready)
    check_replaceable(out, RECORD)  # before the work, not after
    started = time.perf_counter()
    # Before weights are fetched: an autoencoder that is missing is the user's to name.
    autoencoder = autoencoder_identity(config) if isinstance(config, DsadConfig) else ""
    backbone, source = build_backbone(config.features, weights)
    backbone.to(choose_device(config.device))

    paths = [sample.path for sample in dataset.samples]
    hashes = hash_contents(paths, lambda done, total: progress("hashing pictures", done, total))
    if config.split.held_out > 0:
        kept, held_out = split_held_out(
            dataset.train_good,
            share=config.split.held_out,
            minimum=config.split.held_out_minimum,
            seed=config.seed,
            hashes=hashes,
        )
    else:
        kept, held_out = tuple(dataset.train_good), ()
    if not kept:
        raise DataError(f"{dataset.root}: expected good training pictures, got none. See flawscope data inspect.")
    training = tuple(sorted(hashes[sample.path] for sample in kept))
    held_back = tuple(sorted(hashes[sample.path] for sample in held_out))
    if ready is not None and (training, held_back) != (ready.record.training, ready.record.held_out):
        # Otherwise pictures that the denoiser has learned could set thresholds.
        raise DataError(
            f"{dataset.root}: expected the good training pictures that {ready.path} was made from, got others. Name "
            "the same dataset, or train the denoiser again."
        )
    hashed = time.perf_counter()

    training_paths = pictures_of(kept, config.tiling)
    identity = fingerprint(dataset, hashes)
    with contextlib.ExitStack() as stack:
        notes: Path | None = None
        if isinstance(config, PatchcoreConfig):
            with storage_errors(out):  # the fit itself writes, where the patches exceed the memory budget
                out.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".flawscope-", dir=out.parent) as scratch:
                    fitted = fit_patchcore(config, backbone, training_paths, Path(scratch), progress)
        elif isinstance(config, PadimConfig):
            fitted = fit_padim(config, backbone, training_paths, progress)
        else:
            assert isinstance(config, TrainedConfig)
            weights_used = source.weights
            if isinstance(config, DsadConfig):
                weights_used += f"; autoencoder {autoencoder}"
            if ready is not None:
                weights_used += f"; denoiser of the run {ready.digest}"
            notes = stack.enter_context(unfinished(out, config, identity, weights_used, resume))
            if ready is not None:
                shutil.copy2(ready.path / METRICS, notes / METRICS)
                shutil.copytree(ready.path / PREVIEWS, notes / PREVIEWS, dirs_exist_ok=True)
                if (ready.path / BOARD).is_dir():
                    shutil.copytree(ready.path / BOARD, notes / BOARD, dirs_exist_ok=True)
            fitted = train_epochs(
                config, backbone, kept, hashes, notes, resume, progress, None if ready is None else ready.fitted
            )
        fitted_at = time.perf_counter()
        record = RunRecord(
            kind="autoencoder" if isinstance(config, AutoencoderConfig) else "detector",
            config=config,
            category=dataset.category,
            layout=dataset.layout,
            dataset=identity,
            training=training,
            held_out=held_back,
            backbone=source,
            grid=fitted.grid,
            channels=fitted.channels,
            facts=fitted.facts if ready is None else {"denoiser_command": ready.record.command, **fitted.facts},
            seconds={
                "preparation": round(hashed - started, 3),
                "fitting": round(fitted_at - hashed, 3),
            },
            versions=package_versions(),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=command,
            flawscope=flawscope.__version__,
            rule=fitted.rule,
            unet=fitted.unet,
        )
        # Held-out pictures make honest samples: the detector has not memorised them.
        pool = pictures_of(held_out, config.tiling) or training_paths
        step = max(1, len(pool) // _SAMPLES)
        write_run(out, record, fitted, backbone, pool[::step][:_SAMPLES], notes)
        return record


def train_epochs(
    config: TrainedConfig,
    backbone: Backbone,
    samples: Sequence[Sample],
    hashes: dict[Path, str],
    folder: Path,
    resume: bool,
    progress: Progress,
    ready: Fitted | None = None,
) -> Fitted:
    """Train what has epochs; see `train_stfpm`, `train_ddad`, `train_dsad` and `train_autoencoder`."""
    if isinstance(config, StfpmConfig):
        return train_stfpm(config, backbone, samples, hashes, folder, resume, progress)
    if isinstance(config, DdadConfig):
        return train_ddad(config, backbone, samples, hashes, folder, resume, progress, ready)
    if isinstance(config, DsadConfig):
        return train_dsad(config, backbone, samples, hashes, folder, resume, progress)
    assert isinstance(config, AutoencoderConfig)
    return train_autoencoder(config, backbone, samples, hashes, folder, resume, progress)


def check_recorded(config: MethodConfig, run: Run, free: Collection[str] = ()) -> None:
    """Raise ArgumentError unless settings are those of a run, but for the `free` ones."""
    recorded = run.record.config
    if type(config) is not type(recorded):
        wanted, found = (type(one).__struct_config__.tag for one in (config, recorded))
        raise ArgumentError(f"{run.path}: expected a run of {wanted}, got one of {found}. Name another run.")
    wanted_settings, recorded_settings = flatten(config), flatten(recorded)
    for name, asked in wanted_settings.items():
        had = recorded_settings[name]
        if name not in free and asked != had:
            raise ArgumentError(
                f"{name}: expected {had!r}, with which {run.path} was trained, got {asked!r}. Leave it out, or train "
                "again."
            )


def _check_ready(config: MethodConfig, ready: Run) -> None:
    """Refuse a run whose denoiser is not the one that the settings ask for."""
    check_recorded(config, ready, AFTER_DENOISER)
    if not isinstance(config, DdadConfig) or config.extractor == "none":
        raise ArgumentError(
            "extractor: expected ddad with an extractor to train on a denoiser that is ready, got none. Set extractor."
        )
    missing = [name for name in (METRICS, PREVIEWS) if not (ready.path / name).exists()]
    if missing:
        raise RunError(f"{ready.path}: expected a whole run, got one without {missing[0]}. Train again.")
