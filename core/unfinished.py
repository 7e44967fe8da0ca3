"""Trainings that were interrupted: the folder that one leaves, and the command that goes on with it. Without torch.

A training in epochs works in RUN.training and writes RUN at its end, so after an interruption RUN is not there.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import msgspec

from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular
from flawscope.text import NOT_JSON

BEGUN = "begun.json"
"""Record of what a training began with."""
CHECKPOINTS = "checkpoints"
CHECKPOINT = re.compile(r"epoch_(\d{1,9})")
"""Name of a checkpoint, with its epoch."""
_SUFFIX = ".training"
_DEEPEST = 3  # CATEGORY/DEFECT/checkpoints, of train embedding


class Unfinished(NamedTuple):
    """A training that was interrupted.

    Attributes:
        folder: RUN.training.
        epoch: Epoch of the newest checkpoint, or None before the first.
        command: What goes on with it.
    """

    folder: Path
    epoch: int | None
    command: str

    @property
    def words(self) -> str:
        """What it is, for messages."""
        how_far = "no checkpoint yet" if self.epoch is None else f"its newest checkpoint is of epoch {self.epoch}"
        return f"an unfinished training in {self.folder} ({how_far})"


def workspace_of(run: Path) -> Path:
    """Return the folder in which the training of a run works."""
    return run.parent / f"{run.name}{_SUFFIX}"  # `with_name` takes no `.`, which is refused with a message elsewhere


def find_unfinished(path: Path) -> Unfinished | None:
    """Return the interrupted training of a run, named by the run's folder or by its own; None where there is none."""
    if not path.name:  # the root, or the working directory, which are no names of runs
        return None
    for folder in (path, workspace_of(path)):
        try:
            if (folder / BEGUN).is_file():
                return Unfinished(folder, _newest_epoch(folder), resume_command(folder))
        except (OSError, ValueError):  # ValueError: no path at all, as a name with a zero byte
            continue
    return None


def check_finished(path: Path) -> None:
    """Raise RunError where a run was asked for and its training was interrupted."""
    if (found := find_unfinished(path)) and not (path / "run.json").is_file():
        raise RunError(f"{path}: expected a finished run, got {found.words}. Continue it with: {found.command}")


def goes_on(out: Path, resume: bool | Path) -> bool:
    """Return whether a training of a run is there that `resume` goes on with; without one it begins anew."""
    folder = workspace_of(out)
    return resume is not False and folder.is_dir() and bool(list_folder(folder))


def check_not_finished(run: Path, resume: bool | Path) -> None:
    """Raise ArgumentError where a pipeline is to go on with a training and finds a run that is finished.

    To begin anew would replace it, and who asked to go on wants to keep what is there.
    """
    if resume is not False and not goes_on(run, resume) and (run / "run.json").is_file():
        raise ArgumentError(
            f"{run}: expected an unfinished training to go on with, got a finished run. Use it for the other stages "
            "with --skip train, or train again with --overwrite and without --resume."
        )


def check_not_begun(out: Path, resume: bool | Path) -> None:
    """Raise ArgumentError if the training of a run was interrupted, and is not to be resumed."""
    folder = workspace_of(out)
    if resume is not False or not folder.exists() or not list_folder(folder):
        return
    found = find_unfinished(out)
    how = "" if found is None else f" ({found.command})"
    raise ArgumentError(
        f"{folder}: expected no unfinished training, got one. Go on with --resume latest{how}, or remove the folder."
    )


def recorded_command(folder: Path) -> str:
    """Return the command line that began a training, or nothing where it was not written down."""
    return str(_begun(folder).get("command") or "")


def resume_command(folder: Path) -> str:
    """Return the command line that goes on with the training in a folder."""
    begun = _begun(folder)
    run = str(folder).removesuffix(_SUFFIX)
    command = begun.get("command")
    if not isinstance(command, str) or not command.startswith("flawscope "):
        # Begun from Python, or by an earlier version: its data are not known by name.
        words = ["flawscope", "train", str(begun.get("method") or "METHOD"), "--data", "ROOT", "--out", run]
        return f"{shlex.join(words)} --resume latest (with the data and settings that it was begun with)"
    return with_resume(command)


def with_resume(command: str) -> str:
    """Return a command line of a training with `--resume latest` in place of what it says of resuming."""
    try:
        words = shlex.split(command)
    except ValueError:
        return f"{command} --resume latest"
    kept, is_value = [], False
    for word in words:
        if is_value:
            is_value = False
        elif word in ("--resume", "--resume_from_checkpoint"):
            is_value = True
        elif not word.startswith(("--resume=", "--resume_from_checkpoint=")):
            kept.append(word)
    return f"{shlex.join(kept)} --resume latest"


def _begun(folder: Path) -> dict[str, object]:
    try:
        begun = msgspec.json.decode(read_regular(folder / BEGUN, RECORD_BYTES))
    except (OSError, *NOT_JSON):
        return {}
    return begun if isinstance(begun, dict) else {}


def _newest_epoch(folder: Path) -> int | None:
    epochs = [int(found[1]) for path in _checkpoints(folder, _DEEPEST) if (found := CHECKPOINT.fullmatch(path.name))]
    return max(epochs, default=None)


def _checkpoints(folder: Path, depth: int) -> list[Path]:
    try:
        folders = [path for path in list_folder(folder) if path.is_dir() and not path.is_symlink()]
    except DataError:
        return []
    if folder.name == CHECKPOINTS:
        return folders
    return [found for path in folders for found in _checkpoints(path, depth - 1)] if depth >= 0 else []
