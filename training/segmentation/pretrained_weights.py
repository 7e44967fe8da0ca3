"""Pretrained weights from third parties, checked before use.

A file of another network often fits in part: all that is wanted has to be there, in the right shapes and finite, and
nothing that the network does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flawscope.errors import DataError

_COUNTER = "num_batches_tracked"  # of batch normalisation: older files do not have it, and only training reads it


class Weights(Protocol):
    """The tensors of a file, of which only those that are asked for are taken out."""

    @property
    def name(self) -> str:
        """The file's name, for messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name of every tensor -> its shape."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor.

        Raises:
            DataError: If it is broken.
        """


def fill(network: nn.Module, weights: Weights, what: str, *, optional: tuple[str, ...] = ()) -> None:
    """Put the tensors of a file into a network that was made without (on the device `meta`), and freeze it.

    Args:
        network: Takes the tensors, float32, and is put into inference mode.
        weights: The file, in any floating-point type.
        what: The network's name for messages, such as "torchvision's vgg16".
        optional: What names of tensors may begin with that are there and not used.

    Raises:
        DataError: If a tensor is missing, of another shape, unknown, not floating-point or not finite.
    """
    state = network.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(_COUNTER)}
    if wrong := _misfit(wanted, weights.shapes, optional):
        raise DataError(f"{weights.name}: expected the tensors of {what}, got {wrong}. Name the right file.")
    taken = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
    for name in wanted:
        taken[name] = torch.from_numpy(_finite(weights, name))
    network.load_state_dict(taken, assign=True)
    network.eval().requires_grad_(False)


def _finite(weights: Weights, name: str) -> npt.NDArray[np.float32]:
    found = weights.read(name)
    if found.dtype.kind != "f":
        raise DataError(f"{weights.name}: expected floating-point tensors, got {found.dtype} for {name}.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        numbers = np.ascontiguousarray(found, np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"{weights.name}: expected finite numbers, got others in {name}. Get the file again.")
    return numbers


def _misfit(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], optional: tuple[str, ...]
) -> str | None:
    """Return what is wrong with the names and shapes of a file's tensors, or None."""
    for name, shape in wanted.items():
        if name not in found:
            return f"none named {name} among its {len(found)} tensors"
        if tuple(found[name]) != shape:
            return f"{name} {list(found[name])} in place of {list(shape)}"
    for name in found:
        if name not in wanted and not name.endswith(_COUNTER) and not name.startswith(optional):
            return f"{name}, which it does not have"
    return None
