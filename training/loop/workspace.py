"""Workspace of a running training: a folder beside the future run, from which a killed training resumes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from flawscope.config import DenoisingSettings, TrainedConfig, find_part, flatten
from flawscope.errors import ArgumentError
from flawscope.files import storage_errors, write_text
from flawscope.training.loop.loop import CHECKPOINTS
from flawscope.training.loop.optimizers import import_bitsandbytes
from flawscope.training.loop.tensorboard import BOARD, EVENTS, import_tensorboard

_BEGUN = "begun.json"
_SCHEMA = 2  # with 1, or none, it also has settings that the method had no use for
FREE = (
    *("device", "num_workers", "memory_budget_mb"),
    *("checkpoint_every", "checkpoints_kept", "preview_every", "tensorboard"),
)
"""Settings that may change from one part of a training to the next: they do not change its numbers."""


@contextlib.contextmanager
def open_workspace(
    out: Path, config: TrainedConfig, dataset: str, weights: str, resume: bool, descriptions: str = ""
) -> Iterator[Path]:
    """Yield the folder `RUN.training` for metrics, previews and checkpoints.

    It is removed once all is done, and after an error that came before the first checkpoint. What TensorBoard shows
    goes into the run, which has to be there by then.

    Args:
        out: Folder of the run.
        config: Settings; with other ones a training cannot go on.
        dataset: Fingerprint of the dataset; with another one neither.
        weights: Where the backbone's weights are from, with their hash; with others neither.
        resume: Go on in the folder if it is there.
        descriptions: Hash of boxes and sentences; a training with another hash cannot be resumed either.

    Raises:
        ArgumentError: If there is an unfinished training and `resume` was not asked for, or it was another one.
        MissingExtra: If a package that the settings ask for is not installed.
        StorageError: If the folder cannot be written.
    """
    # The loop would refuse them too, but only once images have been read and encoded.
    if config.loop.tensorboard:
        import_tensorboard()
    denoising = find_part(config, DenoisingSettings)
    if denoising is not None and denoising.optimizer == "adamw8bit":
        import_bitsandbytes()
    folder = out.with_name(f"{out.name}.training")
    settings = flatten(config)
    begun = {
        "schema": _SCHEMA,
        "dataset": dataset,
        "weights": weights,
        "descriptions": descriptions,
        "settings": {name: settings[name] for name in settings if name not in FREE},
    }
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise ArgumentError(
                f"{folder}: expected no unfinished training, got one. Go on with --resume latest, or remove the folder."
            )
        _check_same(folder, begun)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _BEGUN, msgspec.json.format(msgspec.json.encode(begun), indent=1).decode() + "\n")
    is_done = False
    try:
        with storage_errors(folder):
            yield folder
            for events in sorted(folder.rglob(f"{BOARD}/{EVENTS}")):
                target = out / events.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(events, target)
        is_done = True
    finally:
        # Without a checkpoint there is nothing to go on from: a request that was wrong leaves nothing behind.
        if is_done or not any(folder.rglob(f"{CHECKPOINTS}/*")):
            shutil.rmtree(folder, ignore_errors=True)


def _check_same(folder: Path, begun: Mapping[str, object]) -> None:
    try:
        had = msgspec.json.decode((folder / _BEGUN).read_bytes())
    except (OSError, msgspec.DecodeError) as err:
        raise ArgumentError(f"{folder}: expected an unfinished training, got none that can be read: {err}.") from err
    if had == msgspec.json.decode(msgspec.json.encode(begun)):
        return
    if not isinstance(had, dict) or had.get("schema") != _SCHEMA:
        raise ArgumentError(
            f"{folder}: expected a training that this version of flawscope began, got one of another. Remove the "
            "folder, and train again with flawscope train."
        )
    for what in ("dataset", "weights", "descriptions"):
        if had.get(what, "") != begun[what]:
            raise ArgumentError(
                f"{folder}: expected the {what} that the training was begun with, got other. Name the same, or remove "
                "the folder."
            )
    before, now = had.get("settings", {}), msgspec.to_builtins(begun["settings"])
    changed = sorted(
        name for name in {*before, *now} if before.get(name) != msgspec.json.decode(msgspec.json.encode(now.get(name)))
    )
    name = changed[0]
    raise ArgumentError(
        f"{folder}: expected {name} as the training was begun with ({before.get(name)}), got {now.get(name)}. Give the "
        "same settings, or remove the folder."
    )
