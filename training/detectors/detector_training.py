"""Training of detectors and autoencoders, top to bottom: dataset → held-out split → fit → run folder."""

from __future__ import annotations

import contextlib
import datetime
import functools
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import msgspec

import flawscope
from flawscope.config import (
    CrossFitSettings,
    FeatureSettings,
    HeldOutSettings,
    MethodConfig,
    TrainedConfig,
    find_part,
    flatten,
)
from flawscope.config.setting_parts import change_settings, part_of, tag_of
from flawscope.cross_scores import CrossScores
from flawscope.datasets import Dataset, Sample, as_recorded, fingerprint, hash_contents, split_held_out
from flawscope.datasets.fingerprints import map_in_threads
from flawscope.datasets.learnable import MIN_TRAINING_IMAGES, check_learnable
from flawscope.drawn_check import DrawnCheck
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.files import check_replaceable
from flawscope.imaging.images import read_stored, to_rgb
from flawscope.imaging.learned_images import LearnedImages, Look, look_of, summarize_looks
from flawscope.imaging.tiles import ImageSource
from flawscope.open_files import regular_folder, regular_path
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD, BackboneSource, RunRecord
from flawscope.training.detectors.cross_fitting import fit_and_cross
from flawscope.training.detectors.detector_run import Run, write_run
from flawscope.training.drawn_checking import check_drawn
from flawscope.training.features.backbone import Backbone, empty_backbone, prepare_backbone
from flawscope.training.features.patch_extraction import choose_device
from flawscope.training.features.scaled_backbone import ScaledBackbone, scaled_backbone, scales_of
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import image_sources
from flawscope.training.loop.loop import METRICS, PREVIEWS
from flawscope.training.loop.ranks import ranks
from flawscope.training.loop.schedule import check_processes
from flawscope.training.loop.tensorboard import BOARD
from flawscope.training.loop.workspace import open_workspace
from flawscope.training.trainer import FitRequest, Trainer, trainer_of
from flawscope.unfinished import check_not_begun, goes_on
from flawscope.versions import package_versions

_RESOLVED = ("stages", "backbone_options", "mean", "std", "final_norm")
"""Settings of the backbone that are filled in where they are open: null, and options that are not named."""
_FEWEST_HELD_OUT = 5
"""Of fewer held-out images the drawn check would say little: it takes those that were learned from."""
_SAMPLES = 8
"""Images stored in the run for parity checks and golden images."""


def train_detector(
    config: MethodConfig,
    dataset: Dataset,
    out: Path,
    *,
    weights: Path | None = None,
    resume: bool | Path = False,
    ready: Run | None = None,
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
    drawn_check: bool = True,
) -> RunRecord:
    """Fit a detector on the normal training images of a dataset and write the run.

    In several processes (`training.loop.ranks`) all of them call it; rank 0 alone checks and writes files.

    Args:
        config: Settings of the method.
        dataset: Its `train_good` images are used, nothing else.
        out: Run folder to write.
        weights: Safetensors file of the backbone, or None for the hub.
        resume: Resume an interrupted training, from its newest checkpoint or from this one; for methods that have
            epochs.
        ready: A run of ddad whose denoiser is reused instead of training one: only the extractor is trained. It may be
            the run at `out`, with `overwrite`.
        command: Command line for the record.
        progress: Receives progress.
        overwrite: Whether an earlier run there may be replaced. A training that is gone on with replaces it too: it
            began with that permission.
        drawn_check: Whether defects are drawn on normal images after the fit and scored, for the record.

    Raises:
        ArgumentError: If settings contradict the backbone or each other, or `out` is taken.
        DataError: If images are missing or broken.
        RunError: If weights cannot be read or downloaded, or `ready` is incomplete.
        StorageError: If the run cannot be written.
    """
    trainer, here = trainer_of(config), ranks()
    if resume is not False and not trainer.has_epochs:
        raise ArgumentError(
            "resume: expected a method that is trained in epochs, got one that is fitted. Leave it out."
        )
    denoiser_run = ready  # the keyword is older than the name
    if denoiser_run is not None:
        _check_denoiser_run(config, trainer, denoiser_run)
    check_processes(config, trainer.takes_processes, here.world)
    if here.is_writer:  # the others would find what rank 0 has begun
        overwrite = overwrite or goes_on(out, resume)
        check_replaceable(out, RECORD, overwrite=overwrite)  # before hours of work, not after
        check_not_begun(out, resume)  # also of a fitted run: the training that is gone on with would replace it
    started = time.perf_counter()
    inputs = _prepare(config, dataset, trainer, weights, denoiser_run, progress)
    prepared_at = time.perf_counter()
    # Open until the run is written: on leaving, its TensorBoard events are copied into the run and it is removed.
    with _workspace(inputs, out, resume, command) as workspace:
        request = inputs.request(out, workspace, progress, is_resumed=resume is not False)
        record_of = functools.partial(_record, inputs, command)
        folds = folds_of(inputs.config)
        fit_result, cross = fit_and_cross(trainer, request, folds, record_of) if folds else (trainer.fit(request), None)
        fitted_at = time.perf_counter()
        seconds = {"preparation": round(prepared_at - started, 3), "fitting": round(fitted_at - prepared_at, 3)}
        record = record_of(fit_result, cross, seconds)
        if not here.is_writer:
            here.barrier()  # until the run is there
            return record
        if drawn_check and trainer.is_detector:
            drawn = _check_drawn(inputs, record, fit_result, request.images, out, progress)
            record = msgspec.structs.replace(record, drawn=drawn)
        samples = _sample_images(inputs.config, inputs.split, request.images)
        write_run(
            out,
            record,
            fit_result,
            inputs.backbone,
            samples,
            workspace,
            are_learned=record.cross is not None,
            overwrite=overwrite,
        )
        here.barrier()
        return record


@dataclass(frozen=True)
class _Split:
    """Normal images to learn from, those held out for thresholds, the hashes of all files, and what is learned of."""

    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    hashes: dict[Path, str]
    learned: LearnedImages

    def contents(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """Return the content hashes of some samples, sorted."""
        return tuple(sorted(self.hashes[sample.path] for sample in samples))


@dataclass(frozen=True)
class _Inputs:
    """What a fit starts from.

    Attributes:
        dataset: The dataset.
        trainer: Who fits.
        denoiser_run: A run whose denoiser is reused, or None.
        config: The settings, with what they left open about the backbone filled in.
        backbone: Extractor of features on its device.
        source: Origin of its weights.
        weights_used: Origin and hash of all weights that the training starts from: with others it cannot resume.
        split: The images.
        identity: Fingerprint of the dataset.
    """

    dataset: Dataset
    trainer: Trainer
    denoiser_run: Run | None
    config: MethodConfig
    backbone: Backbone
    source: BackboneSource
    weights_used: str
    split: _Split
    identity: str

    def request(self, out: Path, workspace: Path | None, progress: Progress, *, is_resumed: bool) -> FitRequest:
        """Return the request to fit on all images of the split."""
        return FitRequest(
            config=self.config,
            backbone=self.backbone,
            samples=self.split.samples,
            images=image_sources(self.split.samples, self.config.tiling),
            hashes=self.split.hashes,
            out=out,
            workspace=workspace,
            resume=is_resumed,
            progress=progress,
            start=None if self.denoiser_run is None else self.denoiser_run.fitted,
            dataset=self.dataset,
        )


def _prepare(
    config: MethodConfig,
    dataset: Dataset,
    trainer: Trainer,
    weights: Path | None,
    denoiser_run: Run | None,
    progress: Progress,
) -> _Inputs:
    """Load the backbone and split the images."""
    # Before weights are downloaded: a missing autoencoder is an error in the settings.
    other_weights = trainer.other_weights(config)
    config, backbone, source = _resolve_backbone(config, weights)
    if denoiser_run is not None and source.weights == denoiser_run.record.backbone.weights:
        source = denoiser_run.record.backbone  # its settings are taken over, and would be said to be set by hand
    backbone.to(choose_device(config.device))
    scaled = scaled_backbone(backbone, config)  # refuses scales that it cannot take, before images are read
    if isinstance(scaled, ScaledBackbone):
        source = replace(source, conditions=(*source.conditions, scaled.line))
    split = _split(config, dataset, progress)
    if denoiser_run is not None:
        _check_same_images(dataset, split, denoiser_run)
    denoiser = "" if denoiser_run is None else f"denoiser of the run {denoiser_run.digest}"
    weights_used = "; ".join(filter(None, (source.weights, other_weights, denoiser)))
    identity = fingerprint(dataset, split.hashes)
    return _Inputs(dataset, trainer, denoiser_run, config, backbone, source, weights_used, split, identity)


def _resolve_backbone(config: MethodConfig, weights: Path | None) -> tuple[MethodConfig, Backbone, BackboneSource]:
    """Return the settings with what they left open about the backbone, the backbone, and where it comes from."""
    features = find_part(config, FeatureSettings)
    if features is None:
        if weights is not None:
            raise ArgumentError(
                f"--weights: expected none with {tag_of(type(config))}, which has no backbone, got {weights}. Leave it "
                "out."
            )
        return config, *empty_backbone()
    resizes = scales_of(config) != (1.0,)
    resolved, backbone, source = prepare_backbone(features, weights, config.preprocessing.size, resizes=resizes)
    # Recorded as they were used: what null stands for may change with the next version of timm.
    changed = {
        name: getattr(resolved, name) for name in _RESOLVED if getattr(resolved, name) != getattr(features, name)
    }
    return change_settings(config, changed) if changed else config, backbone, source


@contextlib.contextmanager
def _workspace(inputs: _Inputs, out: Path, resume: bool | Path, command: str) -> Iterator[Path | None]:
    """Yield the workspace of a training in epochs, with the history of a reused denoiser; None for a fitted method."""
    if not inputs.trainer.has_epochs:
        yield None
        return
    trained = cast("TrainedConfig", inputs.config)
    identity, weights = inputs.identity, inputs.weights_used
    with open_workspace(out, trained, identity, weights, resume, command=command) as workspace:
        if inputs.denoiser_run is not None:
            _copy_history(inputs.denoiser_run.path, workspace)
        yield workspace


def _record(
    inputs: _Inputs,
    command: str,
    fit_result: FitResult,
    cross: CrossScores | None = None,
    seconds: dict[str, float] | None = None,
) -> RunRecord:
    """Return the record of a run."""
    split = inputs.split
    facts = fit_result.facts
    if inputs.denoiser_run is not None:
        # The fit's facts win: a denoiser that is reused once more keeps the command that trained it.
        facts = {"denoiser_command": inputs.denoiser_run.record.command, **facts}
    return RunRecord(
        kind="detector" if inputs.trainer.is_detector else "autoencoder",
        config=inputs.config,
        category=inputs.dataset.category,
        layout=inputs.dataset.layout,
        dataset=inputs.identity,
        training=split.contents(split.samples),
        held_out=split.contents(split.held_out),
        backbone=inputs.source,
        grid=fit_result.grid,
        channels=fit_result.channels,
        facts=facts,
        seconds=seconds or {},
        versions=package_versions(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command,
        flawscope=flawscope.__version__,
        rule=fit_result.rule,
        unet=fit_result.unet,
        learned=split.learned,
        cross=cross,
        places=fit_result.places,
        defects=fit_result.defects,
        defect_images=fit_result.defect_images,
    )


def folds_of(config: MethodConfig) -> int:
    """Return the folds of cross-fitting that settings ask for: 0 for none, -1 for each image its own."""
    settings = find_part(config, CrossFitSettings)
    return 0 if settings is None else settings.cross_fit


def _check_drawn(
    inputs: _Inputs,
    record: RunRecord,
    fit_result: FitResult,
    images: Sequence[ImageSource],
    out: Path,
    progress: Progress,
) -> DrawnCheck | None:
    """Return how well the fitted detector tells drawn defects; on images it learned from where too few are held out."""
    config, held_out = record.config, inputs.split.held_out
    # Restored as `export` does it: what is checked is what the run holds, not what the fit has left in memory.
    module = inputs.trainer.restore(out, record, inputs.backbone, fit_result).to(choose_device(config.device))
    is_held_out = len(held_out) >= _FEWEST_HELD_OUT
    sources = image_sources(held_out, config.tiling) if is_held_out else images
    return check_drawn(inputs.trainer, config, module, fit_result, sources, held_out=is_held_out, progress=progress)


def _sample_images(config: MethodConfig, split: _Split, images: Sequence[ImageSource]) -> Sequence[ImageSource]:
    """Return the images that the run keeps, spread evenly; `images` are those it was fitted on."""
    # Held-out images are honest samples: the detector has not memorised them.
    pool = image_sources(split.held_out, config.tiling) or images
    step = max(1, len(pool) // _SAMPLES)
    return pool[::step][:_SAMPLES]


def _split(config: MethodConfig, dataset: Dataset, progress: Progress) -> _Split:
    paths = [sample.path for sample in dataset.samples]
    # All images, those for testing too: the fingerprint of the dataset covers them.
    hashes = hash_contents(paths, lambda count, total: progress("hashing images", count, total))
    check_learnable(dataset, hashes)
    settings = part_of(config, HeldOutSettings)
    training: tuple[Sample, ...] = tuple(dataset.train_good)
    held_out: tuple[Sample, ...] = ()
    if settings.held_out > 0 and not folds_of(config):
        training, held_out = split_held_out(
            dataset.train_good,
            share=settings.held_out,
            minimum=settings.held_out_minimum,
            seed=config.seed,
            hashes=hashes,
        )
    if held_out and len({hashes[sample.path] for sample in training}) < MIN_TRAINING_IMAGES:
        raise DataError(
            f"{dataset.root}: expected at least {MIN_TRAINING_IMAGES} different normal images to learn from, got 1, "
            f"since {len(held_out)} of {len(dataset.train_good)} were held out for thresholds. Add images, or set "
            "held_out=0."
        )
    return _Split(training, held_out, hashes, _learned(training, config, progress))


def _learned(samples: Sequence[Sample], config: MethodConfig, progress: Progress) -> LearnedImages:
    """Return what the images have in common that are learned from."""
    bits = config.preprocessing.bits

    def look(sample: Sample) -> Look:
        stored = read_stored(sample.path)
        return look_of(to_rgb(stored, str(sample.path), bits), 8 * stored.itemsize)

    looks = map_in_threads(look, list(samples), lambda count, total: progress("looking at images", count, total))
    return summarize_looks(list(looks))


def _check_same_images(dataset: Dataset, split: _Split, denoiser_run: Run) -> None:
    """Refuse a denoiser that was trained on other images: held-out ones among them would bias the thresholds."""
    recorded = denoiser_run.record.training, denoiser_run.record.held_out
    hashes = as_recorded(split.hashes, {*recorded[0], *recorded[1]})
    if tuple(tuple(sorted(hashes[s.path] for s in samples)) for samples in (split.samples, split.held_out)) != recorded:
        raise DataError(
            f"{dataset.root}: expected the normal training images that {denoiser_run.path} was made from, got others. "
            "Name the same dataset, or train the denoiser again."
        )


def _copy_history(run: Path, workspace: Path) -> None:
    """Copy metrics, previews and TensorBoard events of a reused denoiser's run into the workspace."""
    # Copied before the fit, since `run` may be the folder that `write_run` replaces. A resumed training has them
    # already, hence `dirs_exist_ok`.
    try:
        shutil.copy2(regular_path(run / METRICS), workspace / METRICS)
        shutil.copytree(regular_folder(run / PREVIEWS), workspace / PREVIEWS, dirs_exist_ok=True)
        if (run / BOARD).is_dir():
            shutil.copytree(regular_folder(run / BOARD), workspace / BOARD, dirs_exist_ok=True)
    except OSError as err:
        raise RunError(f"{run}: its metrics and previews could not be copied: {err.strerror or err}.") from err


def check_recorded(config: MethodConfig, run: Run, free: Collection[str] = ()) -> None:
    """Raise ArgumentError unless the settings, but for the `free` ones, are those of a run."""
    recorded = run.record.config
    if type(config) is not type(recorded):
        expected, got = (type(settings).__struct_config__.tag for settings in (config, recorded))
        raise ArgumentError(f"{run.path}: expected a run of {expected}, got one of {got}. Name another run.")
    recorded_settings = flatten(recorded)
    for name, value in flatten(config).items():
        trained_with = recorded_settings[name]
        if name in _RESOLVED and value is None:
            continue  # left open: the run says what it stands for
        if name == "backbone_options":
            value = {**trained_with, **value}
        if name not in free and value != trained_with:
            raise ArgumentError(
                f"{name}: expected {trained_with!r}, with which {run.path} was trained, got {value!r}. Leave it out, "
                "or train again."
            )


def _check_denoiser_run(config: MethodConfig, trainer: Trainer, denoiser_run: Run) -> None:
    """Refuse a run whose denoiser was trained with other settings, or which is incomplete."""
    check_recorded(config, denoiser_run, trainer.start_settings())
    trainer.check_start(config)
    missing = [name for name in (METRICS, PREVIEWS) if not (denoiser_run.path / name).exists()]
    if missing:
        raise RunError(f"{denoiser_run.path}: expected a whole run, got one without {missing[0]}. Train again.")
