"""Workspace of a running training: a folder beside the future run, from which a killed training resumes."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from flawscope.config import DenoisingSettings, TrainedConfig, find_part, flatten
from flawscope.config.setting_parts import tag_of
from flawscope.errors import ArgumentError
from flawscope.files import storage_errors, temporary_folder, write_text
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular, regular_path, walk_folder
from flawscope.text import NOT_JSON, encode_json
from flawscope.training.loop.checkpoints import is_checkpoint, later_checkpoints
from flawscope.training.loop.loop import CHECKPOINTS
from flawscope.training.loop.optimizers import import_bitsandbytes
from flawscope.training.loop.ranks import ranks
from flawscope.training.loop.tensorboard import BOARD, EVENTS, import_tensorboard
from flawscope.unfinished import BEGUN, check_not_begun, recorded_command, workspace_of

_LOG = logging.getLogger(__name__)
_SCHEMA = 2  # 1, or none, also recorded settings that the method does not have
FREE = (
    *("device", "num_workers", "memory_budget_mb"),
    *("checkpoint_every", "checkpoints_kept", "preview_every", "tensorboard"),
)
"""Settings that may change when a training resumes: they do not change its results."""


@contextlib.contextmanager
def open_workspace(
    out: Path,
    config: TrainedConfig,
    dataset: str,
    weights: str,
    resume: bool | Path,
    descriptions: str = "",
    command: str = "",
) -> Iterator[Path]:
    """Yield the folder `RUN.training` for metrics, previews and checkpoints.

    It is removed at the end, and after an error before the first checkpoint. Its TensorBoard events are copied into
    the run, which the caller must have written by then. In a training of several processes rank 0 has it; the others
    get a private folder that is removed, so that nothing they write reaches the run. Every rank enters.

    Args:
        out: Folder of the run.
        config: Settings. A training resumes only with the same ones, but for those in `FREE`; the same holds for the
            next arguments.
        dataset: Fingerprint of the dataset.
        weights: Origin and hash of the weights it starts from.
        resume: Resume in the folder if it is there, from its newest checkpoint; or from this one, or from the newest of
            this folder, which must be the training's own. Checkpoints behind it are removed: the steps are taken again.
        descriptions: Hash of boxes and captions.
        command: Command line, which messages about the training repeat while it is unfinished.

    Raises:
        ArgumentError: If there is an unfinished training and `resume` is false, it is of another kind, or the
            checkpoint is none of it.
        MissingExtra: If a package that the settings ask for is not installed.
        StorageError: If the folder cannot be written.
    """
    # Imported here to fail early: the loop needs them only after images have been read and encoded.
    if config.loop.tensorboard:
        import_tensorboard()
    denoising = find_part(config, DenoisingSettings)
    if denoising is not None and denoising.optimizer == "adamw8bit":
        import_bitsandbytes()
    if not ranks().is_writer:
        ranks().barrier()
        with temporary_folder(out.parent) as own:
            yield own
        return
    folder = workspace_of(out)
    check_not_begun(out, resume)
    settings = flatten(config)
    # All that the results depend on: a training that resumed with other data or settings would be neither of the two.
    begun = {
        "schema": _SCHEMA,
        "dataset": dataset,
        "weights": weights,
        "descriptions": descriptions,
        "settings": {name: settings[name] for name in settings if name not in FREE},
    }
    if folder.exists() and list_folder(folder):
        _check_same(folder, begun)
        command = recorded_command(folder) or command
    elif resume is True:
        _LOG.warning("%s: no unfinished training is there, so --resume latest begins anew", folder)
    if isinstance(resume, Path):
        _go_back(folder, resume)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # For messages alone, and compared with nothing.
        told = {**begun, "method": tag_of(type(config)), "command": command}
        write_text(folder / BEGUN, msgspec.json.format(encode_json(told), indent=1).decode() + "\n")
    ranks().barrier()  # only now: what was refused above must be the end of all processes, before the work
    is_done = False
    try:
        with storage_errors(folder):
            yield folder
            # After the body, in which the run is written: before, there is no run to copy them into.
            for events in [path for path in walk_folder(folder) if _is_events(path)]:
                target = out / events.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(regular_path(events), target)
        is_done = True
    finally:
        # Without a checkpoint there is nothing to resume from: a request that failed early leaves nothing behind.
        if is_done or not any(path.parent.name == CHECKPOINTS for path in walk_folder(folder)):
            shutil.rmtree(folder, ignore_errors=True)


def _go_back(folder: Path, named: Path) -> None:
    """Remove the checkpoints behind the one that a training is to resume from.

    Raises:
        ArgumentError: If it is no checkpoint of the training, or what came after it rests on a later one.
    """
    place, own = named.resolve(), folder.resolve()
    places = [path for path in walk_folder(folder) if path.name == CHECKPOINTS] if folder.is_dir() else []
    if places and place in (own, *(path.resolve() for path in places)):
        return
    holding = next((path for path in places if path.resolve() == place.parent and is_checkpoint(place)), None)
    if holding is None:
        kind = "a checkpoint of another training or tool" if named.is_dir() else "no such folder"
        raise ArgumentError(
            f"--resume {named}: expected latest, or a checkpoint in {folder}, got {kind}. Name one of {folder}/..."
            f"/{CHECKPOINTS}, or train again."
        )
    # The extractor of ddad learns from the finished denoiser, whose checkpoints lie at the top.
    later = later_checkpoints(holding, place.name)
    if later and holding == folder / CHECKPOINTS and len(places) > 1:
        raise ArgumentError(
            f"--resume {named}: expected the newest checkpoint, because a later stage has begun, got an older one. Say "
            "--resume latest, or train again."
        )
    for path in later:
        shutil.rmtree(path)


def _is_events(path: Path) -> bool:
    return path.parent.name == BOARD and fnmatch.fnmatchcase(path.name, EVENTS)


def _check_same(folder: Path, begun: Mapping[str, object]) -> None:
    """Raise ArgumentError unless the training in the folder was begun with the same data, weights and settings."""
    try:
        recorded = msgspec.json.decode(read_regular(folder / BEGUN, RECORD_BYTES))
    except (OSError, *NOT_JSON) as err:
        raise ArgumentError(f"{folder}: expected an unfinished training, got none that can be read: {err}.") from err
    if isinstance(recorded, dict):
        recorded = {key: value for key, value in recorded.items() if key not in ("method", "command")}
    # Through JSON and back, as the recorded one: tuples are lists there.
    if recorded == msgspec.json.decode(encode_json(begun)):
        return
    if not isinstance(recorded, dict) or recorded.get("schema") != _SCHEMA:
        raise ArgumentError(
            f"{folder}: expected a training that this version of flawscope began, got one of another version. Remove "
            "the folder, and train again with flawscope train."
        )
    for key in ("dataset", "weights", "descriptions"):
        if recorded.get(key, "") != begun[key]:
            # The folders of labelled defects are compared with the weights: to their user they are none.
            is_labelled = key == "weights" and "train_defects" in msgspec.to_builtins(begun["settings"])
            what = "weights and labelled defects" if is_labelled else key
            raise ArgumentError(
                f"{folder}: expected the {what} that the training was begun with, got other. Name the same, or remove "
                "the folder."
            )
    before, now = recorded.get("settings", {}), msgspec.to_builtins(begun["settings"])
    before = before if isinstance(before, dict) else {}
    changed = sorted(
        name for name in {*before, *now} if before.get(name) != msgspec.json.decode(encode_json(now.get(name)))
    )
    if not changed:
        raise ArgumentError(
            f"{folder}: expected an unfinished training, got other entries in {BEGUN}. Remove the folder, and train "
            "again with flawscope train."
        )
    name = changed[0]
    raise ArgumentError(
        f"{folder}: expected {name} as the training was begun with ({before.get(name)}), got {now.get(name)}. Give the "
        "same settings, or remove the folder."
    )
