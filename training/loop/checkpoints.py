"""Checkpoints: tensors in safetensors, numbers in JSON, written whole or not at all. Nothing is pickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from flawscope.errors import RunError
from flawscope.files import atomic_folder

_TENSORS, _NUMBERS = "tensors.safetensors", "state.json"
_PREFIX = "epoch_"


@dataclass(frozen=True)
class Checkpoint:
    """Everything a training needs to go on.

    Attributes:
        state: Group (`network`, `best`, `average`) -> name -> tensor.
        optimizer: What `Optimizer.state_dict` gives; bitsandbytes has its moments in a dictionary of their own.
        numbers: Counters and figures, as JSON can hold them.
    """

    state: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Any]
    numbers: dict[str, Any]


def write_checkpoint(folder: Path, epoch: int, checkpoint: Checkpoint, *, keep: int) -> None:
    """Write the checkpoint of an epoch below a folder and remove all but the newest `keep`."""
    tensors = {f"{group}/{name}": value for group, named in checkpoint.state.items() for name, value in named.items()}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in checkpoint.optimizer["state"].items():
        for place, value in _leaves(entries):
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{place}"] = value
            else:
                values.setdefault(str(index), {})[place] = value
    numbers = {
        "numbers": checkpoint.numbers,
        "optimizer": {"values": values, "groups": checkpoint.optimizer["param_groups"]},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder / f"{_PREFIX}{epoch:06d}", replace_if=_NUMBERS) as target:
        # Tensors that share memory (tied weights) would be refused: each is written by itself.
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        safetensors.torch.save_file(whole, target / _TENSORS)
        (target / _NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint below a folder, or None if there is none.

    Raises:
        RunError: If it cannot be read.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    try:
        # Copies: in the file tensors lie as they come, in memory of their own as every other tensor does.
        tensors = {name: value.clone() for name, value in safetensors.torch.load_file(found[-1] / _TENSORS).items()}
        stored = json.loads((found[-1] / _NUMBERS).read_text(encoding="utf-8"))
        numbers, groups, values = stored["numbers"], stored["optimizer"]["groups"], stored["optimizer"]["values"]
    except (OSError, ValueError, KeyError, SafetensorError) as err:
        raise RunError(
            f"{found[-1]}: expected a checkpoint, got {err}. Remove it; the one before it is taken."
        ) from err
    state: dict[str, dict[str, Tensor]] = {}
    optimizer: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values.items()}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        if group == "optimizer":
            index, _, entry = rest.partition("/")
            optimizer.setdefault(int(index), {})[entry] = value
        else:
            state.setdefault(group, {})[rest] = value
    state.setdefault("best", {})
    entries = {index: _nested(leaves) for index, leaves in optimizer.items()}
    return Checkpoint(state, {"state": entries, "param_groups": groups}, numbers)


def _leaves(entries: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in dictionaries within each other, with its place: names joined by slashes."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}/")
        else:
            yield above + name, value


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dictionaries that such places came from."""
    found: dict[str, Any] = {}
    for place, value in leaves.items():
        *parents, name = place.split("/")
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return found


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())
