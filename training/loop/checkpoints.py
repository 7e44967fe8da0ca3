"""Checkpoints: tensors in safetensors, numbers in JSON, written atomically. Nothing is pickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from flawscope.errors import RunError
from flawscope.files import atomic_folder
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular, regular_path
from flawscope.training.loop.ranks import Ranks

_TENSORS, _NUMBERS = "tensors.safetensors", "state.json"
_PREFIX = "epoch_"
_BROKEN = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Checkpoint:
    """Everything a training needs to resume.

    Attributes:
        state: Group (`network`, `best`, `average`) -> name -> tensor.
        optimizer: As `Optimizer.state_dict` returns it; bitsandbytes nests its moments in a further dictionary.
        numbers: Counters and figures that JSON can hold.
    """

    state: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    numbers: dict[str, Any]


def write_checkpoint(folder: Path, epoch: int, checkpoint: Checkpoint, *, keep: int) -> None:
    """Write the checkpoint of an epoch below a folder and remove all but the newest `keep`."""
    tensors, numbers = _taken_apart(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    own = (_TENSORS, _NUMBERS)
    place = folder / f"{_PREFIX}{epoch:06d}"
    with atomic_folder(place, replace_if=_NUMBERS, overwrite=True, own=own, durable=True) as target:
        # Cloned, since safetensors refuses tensors that share memory (tied weights, views).
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        safetensors.torch.save_file(copies, target / _TENSORS)
        (target / _NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")
    # Only now: a kill while writing leaves the older ones to resume from.
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint below a folder, or None if there is none.

    Raises:
        RunError: If it cannot be read.
    """
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return None
    latest = checkpoints[-1]
    try:
        # Cloned into memory that torch has aligned: in the file tensors lie at any offset, and kernels may choose
        # another path, hence other rounding, for unaligned ones. A resumed training must give the same bits.
        loaded = safetensors.torch.load_file(regular_path(latest / _TENSORS))
        tensors = {name: value.clone() for name, value in loaded.items()}
        stored = json.loads(read_regular(latest / _NUMBERS, RECORD_BYTES))
        return _assembled(tensors, stored)
    except (OSError, *_BROKEN, SafetensorError) as err:
        raise RunError(
            f"{latest}: expected a checkpoint, got {' '.join(str(err).split()) or type(err).__name__}. Remove it to "
            "resume from the one before it."
        ) from err


def share_checkpoint(checkpoint: Checkpoint | None, here: Ranks) -> Checkpoint | None:
    """Return rank 0's checkpoint on every process: only its machine may have the folder. Every rank enters.

    Args:
        checkpoint: What rank 0 resumes from, or None to begin anew; of the others it does not matter.
        here: This process among those of the training.
    """
    if here.world == 1:
        return checkpoint
    tensors: dict[str, Tensor] = {}
    header = b"null"
    if here.is_writer and checkpoint is not None:
        found, numbers = _taken_apart(checkpoint)
        tensors = {name: value.detach().cpu().contiguous() for name, value in found.items()}
        shapes = {name: [str(value.dtype).removeprefix("torch."), *value.shape] for name, value in tensors.items()}
        # json, not msgspec: no error has been measured yet is infinity, which msgspec writes as null.
        header = json.dumps({"numbers": numbers, "shapes": shapes}).encode()
    told = json.loads(here.broadcast_bytes(header))
    if told is None:
        return None
    received: dict[str, Tensor] = {}
    for name, (kind, *shape) in told["shapes"].items():
        value = tensors[name] if name in tensors else torch.empty(shape, dtype=getattr(torch, kind))
        # As bytes, in which every type of number travels; a view, so that they arrive in the tensor.
        here.broadcast_tensor(value.reshape(-1).view(torch.uint8))
        received[name] = value
    return _assembled(received, told["numbers"])


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is named as a checkpoint is, and is whole."""
    return path.name.startswith(_PREFIX) and (path / _NUMBERS).is_file() and (path / _TENSORS).is_file()


def later_checkpoints(folder: Path, name: str) -> list[Path]:
    """Return the checkpoints below a folder that are newer than the one called `name`."""
    return [path for path in _checkpoints(folder) if path.name > name]


def _taken_apart(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint, and all its numbers: the inverse of `_assembled`."""
    # Slashes separate the parts of a key: names of parameters have dots, never slashes.
    tensors = {f"{group}/{name}": value for group, named in checkpoint.state.items() for name, value in named.items()}
    values: dict[str, dict[str, Any]] = {}
    # The optimizer's state mixes tensors (moments) and plain numbers (steps of some optimizers): each goes to its file.
    for index, entries in checkpoint.optimizer["state"].items():
        for key, value in _leaves(entries):
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                values.setdefault(str(index), {})[key] = value
    numbers = {
        "numbers": checkpoint.numbers,
        "optimizer": {"values": values, "groups": checkpoint.optimizer["param_groups"]},
    }
    return tensors, numbers


def _assembled(tensors: Mapping[str, Tensor], stored: Any) -> Checkpoint:
    """Return the checkpoint of which these are the tensors and numbers; raises one of `_BROKEN` for others."""
    numbers, groups, values = stored["numbers"], stored["optimizer"]["groups"], stored["optimizer"]["values"]
    if not isinstance(numbers, dict) or not isinstance(groups, list):
        raise TypeError("other values than a training writes")
    state: dict[str, dict[str, Tensor]] = {}
    optimizer: dict[int, dict[str, Any]] = {_index(index): dict(entries) for index, entries in values.items()}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        if group == "optimizer":
            index, _, key = rest.partition("/")
            optimizer.setdefault(_index(index), {})[key] = value
        else:
            state.setdefault(group, {})[rest] = value
    state.setdefault("best", {})  # an empty group leaves no trace in the file
    nested = {index: _nested(leaves) for index, leaves in optimizer.items()}
    return Checkpoint(state, {"state": nested, "param_groups": groups}, numbers)


def _index(text: str) -> int:
    # Integers as keys can be chosen so that a dictionary of them takes minutes; a network has fewer parameters.
    if len(text) > 7:
        raise ValueError(f"the parameter {text[:20]}")
    return int(text)


def _leaves(entries: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested dictionaries with their keys, joined by slashes."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}/")
        else:
            yield above + name, value


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dictionaries of such leaves: the inverse of `_leaves`."""
    root: dict[str, Any] = {}
    for key, value in leaves.items():
        *parents, name = key.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return root


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Numbers have leading zeros, so the order of names is the order of epochs.
    return [path for path in list_folder(folder) if path.name.startswith(_PREFIX) and path.is_dir()]
