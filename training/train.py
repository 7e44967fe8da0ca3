"""The training pipeline, top to bottom: dataset → held-out split → fit → run folder."""

from __future__ import annotations

import datetime
import tempfile
import time
from pathlib import Path

import flawscope
from flawscope.config import DetectorConfig, PadimConfig, PatchcoreConfig
from flawscope.datasets import Dataset, fingerprint, hash_contents, split_held_out
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable, storage_errors
from flawscope.training.backbone import build_backbone
from flawscope.training.extraction import choose_device
from flawscope.training.loading import Progress, no_progress
from flawscope.training.padim import fit_padim
from flawscope.training.patchcore import fit_patchcore
from flawscope.training.run import RECORD, RunRecord, write_run
from flawscope.versions import package_versions

_SAMPLES = 8
"""Pictures stored in the run for parity checks and golden images."""


def train_detector(
    config: DetectorConfig,
    dataset: Dataset,
    out: Path,
    *,
    weights: Path | None = None,
    command: str = "",
    progress: Progress = no_progress,
) -> RunRecord:
    """Fit a detector on the good training pictures of a dataset and write the run.

    Args:
        config: Settings of the method.
        dataset: Its `train_good` pictures are used, nothing else.
        out: Run folder to write; an earlier run there is replaced.
        weights: Safetensors file of the backbone, or None for the hub.
        command: Command line for the record.
        progress: Told what is being done.

    Raises:
        ArgumentError: If settings do not fit the backbone or each other.
        DataError: If pictures are missing or broken.
        RunError: If weights cannot be had.
        StorageError: If the run cannot be written.
    """
    if not isinstance(config, PatchcoreConfig | PadimConfig):
        raise ArgumentError(f"config: expected settings of patchcore or padim, got {type(config).__name__}.")
    check_replaceable(out, RECORD)  # before the work, not after
    started = time.perf_counter()
    backbone, source = build_backbone(config, weights)
    backbone.to(choose_device(config.device))

    paths = [sample.path for sample in dataset.samples]
    hashes = hash_contents(paths, lambda done, total: progress("hashing pictures", done, total))
    if config.held_out > 0:
        kept, held_out = split_held_out(
            dataset.train_good, share=config.held_out, minimum=config.held_out_minimum, seed=config.seed, hashes=hashes
        )
    else:
        kept, held_out = tuple(dataset.train_good), ()
    if not kept:
        raise DataError(f"{dataset.root}: expected good training pictures, got none. See flawscope data inspect.")
    hashed = time.perf_counter()

    training_paths = [sample.path for sample in kept]
    if isinstance(config, PatchcoreConfig):
        with storage_errors(out):  # the fit itself writes, where the patches exceed the memory budget
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".flawscope-", dir=out.parent) as scratch:
                fitted = fit_patchcore(config, backbone, training_paths, Path(scratch), progress)
    else:
        fitted = fit_padim(config, backbone, training_paths, progress)
    fitted_at = time.perf_counter()

    record = RunRecord(
        kind="detector",
        config=config,
        category=dataset.category,
        layout=dataset.layout,
        dataset=fingerprint(dataset, hashes),
        training=tuple(sorted(hashes[sample.path] for sample in kept)),
        held_out=tuple(sorted(hashes[sample.path] for sample in held_out)),
        backbone=source,
        grid=fitted.grid,
        channels=fitted.channels,
        facts=fitted.facts,
        seconds={
            "preparation": round(hashed - started, 3),
            "fitting": round(fitted_at - hashed, 3),
        },
        versions=package_versions(),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command,
        flawscope=flawscope.__version__,
    )
    # Held-out pictures make honest samples: the detector has not memorised them.
    pool = [sample.path for sample in held_out] or training_paths
    step = max(1, len(pool) // _SAMPLES)
    write_run(out, record, fitted, backbone, pool[::step][:_SAMPLES])
    return record
