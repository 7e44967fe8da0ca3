"""Training pipeline of the defect generators: dataset, base model and support set → training → run folder."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import cast

import flawscope
from flawscope.config import MethodConfig, TrainedConfig
from flawscope.config.setting_parts import tag_of
from flawscope.datasets import Dataset, as_recorded, fingerprint, hash_contents
from flawscope.errors import DataError
from flawscope.files import check_replaceable
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD, SynthesisRecord
from flawscope.training.loop.image_batches import image_sources
from flawscope.training.loop.ranks import ranks
from flawscope.training.loop.schedule import check_processes
from flawscope.training.loop.workspace import open_workspace
from flawscope.training.synthesis.generator_run import write_synthesis_run
from flawscope.training.synthesis.generator_trainer import GeneratorRequest, files_of, generator_trainer_of
from flawscope.training.synthesis.support_examples import SupportExamples
from flawscope.unfinished import check_not_begun, goes_on
from flawscope.versions import package_versions

_SAMPLES = 8
"""Normal images stored in the run, on which the parity gate of an export draws."""


def train_synthesis(
    config: MethodConfig,
    dataset: Dataset,
    out: Path,
    *,
    resume: bool | Path = False,
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> SynthesisRecord:
    """Train a defect generator and write the run.

    In several processes (`training.loop.ranks`) all of them call it; rank 0 alone checks and writes files.

    Args:
        config: Settings of `train base`, `train embedding` or `train inpainting`.
        dataset: A base model learns its normal training images. The other methods learn the images of a support set,
            which must come from this dataset.
        out: Run folder to write.
        resume: Resume a training that was interrupted, from its newest checkpoint or from this one.
        command: Command line for the record.
        progress: Told what is being done.
        overwrite: Whether an earlier run there may be replaced. A training that is gone on with replaces it too:
            it began with that permission.

    Raises:
        ArgumentError: If `out` is taken, settings name no autoencoder, base or support set, or do not fit them.
        DataError: If images are missing, broken, too few, or not of the dataset.
        MissingExtra: If a package is not installed.
        RunError: If autoencoder or base cannot be used, memory runs out, the loss is not finite, or a checkpoint does
            not fit.
        StorageError: If the run cannot be written.
    """
    trainer, here = generator_trainer_of(config), ranks()
    check_processes(config, trainer.takes_processes, here.world)
    if here.is_writer:  # the others would find what rank 0 has begun
        overwrite = overwrite or goes_on(out, resume)
        check_replaceable(out, RECORD, overwrite=overwrite)  # before the work, not after
        check_not_begun(out, resume)
    started = time.perf_counter()
    # Before the images are hashed, which may take minutes: a missing base or support set is reported at once.
    start = trainer.start(config)
    weights, licence = trainer.weights(config, start), trainer.licence(config, start)
    # All images of the dataset, not the training images alone: the fingerprint needs them, and the check of the support
    # set, whose images may be test images.
    paths = [sample.path for sample in dataset.samples]
    hashes = hash_contents(paths, lambda done, total: progress("hashing images", done, total))
    identity = fingerprint(dataset, hashes)
    good: list[ImageSource] = image_sources(dataset.train_good, config.tiling)
    if not good:
        raise DataError(f"{dataset.root}: expected normal training images, got none. See flawscope data inspect.")
    if start is None:
        training = sorted(hashes[sample.path] for sample in dataset.train_good)
    else:
        learned = {example.record.content for example in start.support.real}
        _check_support(dataset, start.support, frozenset(as_recorded(hashes, learned).values()))
        # What a test must leave out: the support images, not the normal ones, which these methods do not see.
        training = sorted(example.record.content for example in start.support.real)
    prepared_at = time.perf_counter()
    descriptions = "" if start is None else start.descriptions
    trained = cast("TrainedConfig", config)
    with open_workspace(out, trained, identity, weights, resume, descriptions, command) as workspace:
        fit_result = trainer.fit(
            GeneratorRequest(config, dataset, start, hashes, workspace, resume is not False, progress)
        )
        fitted_at = time.perf_counter()
        record = SynthesisRecord(
            kind=tag_of(type(config)),
            config=config,
            category=dataset.category,
            layout=dataset.layout,
            dataset=identity,
            training=tuple(training),
            base="" if start is None else start.base.identity,
            licence=licence,
            defects=fit_result.defects,
            networks=fit_result.settings,
            facts=fit_result.facts,
            seconds={"preparation": round(prepared_at - started, 3), "fitting": round(fitted_at - prepared_at, 3)},
            versions=package_versions(),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=command,
            flawscope=flawscope.__version__,
        )
        # Evenly spread: neighbours in a folder often show the same part.
        samples = good[:: max(1, len(good) // _SAMPLES)][:_SAMPLES]
        if here.is_writer:
            write_synthesis_run(out, record, fit_result, samples, workspace, files_of(start), overwrite=overwrite)
        here.barrier()  # until the run is there
    return record


def _check_support(dataset: Dataset, support: SupportExamples, contents: frozenset[str]) -> None:
    """Refuse support images of another dataset: no test would recognise them as learned and leave them out."""
    records = (example.record for example in support.real)
    foreign = [record.source for record in records if record.content not in contents]
    if foreign:
        raise DataError(
            f"{support.path}: expected images of {dataset.root}, got {len(foreign)} that are not in it (the first is "
            f"{foreign[0]}). Name the dataset that the support set was made from."
        )
