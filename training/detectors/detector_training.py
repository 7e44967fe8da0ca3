"""The training pipeline, top to bottom: dataset → held-out split → fit → run folder."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import flawscope
from flawscope.config import FeatureSettings, HeldOutSettings, MethodConfig, TrainedConfig, flatten
from flawscope.config.setting_parts import part_of
from flawscope.datasets import Dataset, Sample, fingerprint, hash_contents, split_held_out
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.files import check_replaceable
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD, RunRecord
from flawscope.training.detectors.detector_run import Run, write_run
from flawscope.training.features.backbone import build_backbone
from flawscope.training.features.patch_extraction import choose_device
from flawscope.training.loop.image_batches import image_sources
from flawscope.training.loop.loop import METRICS, PREVIEWS
from flawscope.training.loop.tensorboard import BOARD
from flawscope.training.loop.workspace import open_workspace
from flawscope.training.trainer import FitRequest, Trainer, trainer_of
from flawscope.versions import package_versions

_SAMPLES = 8
"""Images stored in the run for parity checks and golden images."""


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
    """Fit a detector on the normal training images of a dataset and write the run.

    Args:
        config: Settings of the method.
        dataset: Its `train_good` images are used, nothing else.
        out: Run folder to write; an earlier run there is replaced.
        weights: Safetensors file of the backbone, or None for the hub.
        resume: Go on with a training that was interrupted; for methods that have epochs.
        ready: A run of ddad whose denoiser is taken instead of training one: the extractor alone learns. It may be the
            one at `out`.
        command: Command line for the record.
        progress: Told what is being done.

    Raises:
        ArgumentError: If settings do not fit the backbone or each other.
        DataError: If images are missing or broken.
        RunError: If weights cannot be had, or `ready` is not whole.
        StorageError: If the run cannot be written.
    """
    trainer = trainer_of(config)
    if resume and not trainer.has_epochs:
        raise ArgumentError(
            "resume: expected a method that is trained in epochs, got one that is fitted. Leave it out."
        )
    if ready is not None:
        _check_ready(config, trainer, ready)
    check_replaceable(out, RECORD)  # before the work, not after
    started = time.perf_counter()
    # Before weights are fetched: an autoencoder that is missing is the user's to name.
    other_weights = trainer.other_weights(config)
    backbone, source = build_backbone(part_of(config, FeatureSettings), weights)
    backbone.to(choose_device(config.device))
    split = _split(config, dataset, progress)
    if ready is not None:
        _check_same_images(dataset, split, ready)
    hashed = time.perf_counter()
    identity = fingerprint(dataset, split.hashes)
    with contextlib.ExitStack() as stack:
        workspace: Path | None = None
        if trainer.has_epochs:
            denoiser = "" if ready is None else f"denoiser of the run {ready.digest}"
            used = "; ".join(filter(None, (source.weights, other_weights, denoiser)))
            workspace = stack.enter_context(open_workspace(out, cast("TrainedConfig", config), identity, used, resume))
            if ready is not None:
                _take_over(ready.path, workspace)
        images = image_sources(split.samples, config.tiling)
        fitted = trainer.fit(
            FitRequest(
                config=config,
                backbone=backbone,
                samples=split.samples,
                images=images,
                hashes=split.hashes,
                out=out,
                workspace=workspace,
                resume=resume,
                progress=progress,
                start=None if ready is None else ready.fitted,
            )
        )
        fitted_at = time.perf_counter()
        record = RunRecord(
            kind="detector" if trainer.is_detector else "autoencoder",
            config=config,
            category=dataset.category,
            layout=dataset.layout,
            dataset=identity,
            training=split.contents(split.samples),
            held_out=split.contents(split.held_out),
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
        # Held-out images make honest samples: the detector has not memorised them.
        pool = image_sources(split.held_out, config.tiling) or images
        step = max(1, len(pool) // _SAMPLES)
        write_run(out, record, fitted, backbone, pool[::step][:_SAMPLES], workspace)
        return record


@dataclass(frozen=True)
class _Split:
    """Normal images to learn from, those held out for thresholds, and the content hashes of all files."""

    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    hashes: dict[Path, str]

    def contents(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """Return the content hashes of some samples, sorted."""
        return tuple(sorted(self.hashes[sample.path] for sample in samples))


def _split(config: MethodConfig, dataset: Dataset, progress: Progress) -> _Split:
    paths = [sample.path for sample in dataset.samples]
    hashes = hash_contents(paths, lambda done, total: progress("hashing images", done, total))
    settings = part_of(config, HeldOutSettings)
    kept: tuple[Sample, ...] = tuple(dataset.train_good)
    held_out: tuple[Sample, ...] = ()
    if settings.held_out > 0:
        kept, held_out = split_held_out(
            dataset.train_good,
            share=settings.held_out,
            minimum=settings.held_out_minimum,
            seed=config.seed,
            hashes=hashes,
        )
    if not kept:
        raise DataError(f"{dataset.root}: expected normal training images, got none. See flawscope data inspect.")
    return _Split(kept, held_out, hashes)


def _check_same_images(dataset: Dataset, split: _Split, ready: Run) -> None:
    """Refuse a denoiser that has learned other images: some of them could set thresholds."""
    if (split.contents(split.samples), split.contents(split.held_out)) != (
        ready.record.training,
        ready.record.held_out,
    ):
        raise DataError(
            f"{dataset.root}: expected the normal training images that {ready.path} was made from, got others. Name "
            "the same dataset, or train the denoiser again."
        )


def _take_over(run: Path, workspace: Path) -> None:
    """Copy what an earlier training has told of itself into the workspace of the one that goes on from it."""
    shutil.copy2(run / METRICS, workspace / METRICS)
    shutil.copytree(run / PREVIEWS, workspace / PREVIEWS, dirs_exist_ok=True)
    if (run / BOARD).is_dir():
        shutil.copytree(run / BOARD, workspace / BOARD, dirs_exist_ok=True)


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


def _check_ready(config: MethodConfig, trainer: Trainer, ready: Run) -> None:
    """Refuse a run whose denoiser is not the one that the settings ask for."""
    check_recorded(config, ready, trainer.start_settings())
    trainer.check_start(config)
    missing = [name for name in (METRICS, PREVIEWS) if not (ready.path / name).exists()]
    if missing:
        raise RunError(f"{ready.path}: expected a whole run, got one without {missing[0]}. Train again.")
