"""Pretrained weights from third parties, checked before use.

The file of another network often fits in part. So every tensor of the network must be in the file, with the right shape
and finite, and the file must have no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flawscope.errors import DataError

_COUNTER = "num_batches_tracked"  # of batch norm: older files lack it, and only training reads it


class Weights(Protocol):
    """The tensors of a file, each read only when asked for."""

    @property
    def name(self) -> str:
        """The file's name, for messages."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every tensor."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor.

        Raises:
            DataError: If it is broken.
        """


def fill(network: nn.Module, weights: Weights, name: str, *, optional: tuple[str, ...] = ()) -> None:
    """Load the tensors of a file into a network without any (on the device `meta`), and freeze it.

    Args:
        network: Gets the tensors as float32, and is put into inference mode.
        weights: The file, in any floating-point type.
        name: Name of the network for messages, such as "torchvision's vgg16".
        optional: Prefixes of tensors that the file may have and that are ignored.

    Raises:
        DataError: If a tensor is missing, unknown, of another shape, not floating-point or not finite.
    """
    state = network.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(_COUNTER)}
    # Names and shapes first: they come from the header, and no data of a wrong file is read.
    if misfit := _misfit(shapes, weights.shapes, optional):
        raise DataError(f"{weights.name}: expected the tensors of {name}, got {misfit}. Name the right file.")
    tensors = {key: torch.zeros(tensor.shape, dtype=tensor.dtype) for key, tensor in state.items()}
    for key in shapes:
        tensors[key] = torch.from_numpy(_finite(weights, key))
    # Assigned: tensors on `meta` have no memory to copy into.
    network.load_state_dict(tensors, assign=True)
    network.eval().requires_grad_(False)


def _finite(weights: Weights, name: str) -> npt.NDArray[np.float32]:
    stored = weights.read(name)
    if stored.dtype.kind != "f":
        raise DataError(f"{weights.name}: expected floating-point tensors, got {stored.dtype} for {name}.")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused below
        numbers = np.ascontiguousarray(stored, np.float32)
    if not np.isfinite(numbers).all():
        raise DataError(f"{weights.name}: expected finite numbers, got others in {name}. Get the file again.")
    return numbers


def _misfit(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], optional: tuple[str, ...]
) -> str | None:
    """Return what is wrong with the names and shapes of a file's tensors, or None."""
    for name, shape in expected.items():
        if name not in stored:
            return f"none named {name} among its {len(stored)} tensors"
        if tuple(stored[name]) != shape:
            return f"{name} {list(stored[name])} in place of {list(shape)}"
    for name in stored:
        if name not in expected and not name.endswith(_COUNTER) and not name.startswith(optional):
            return f"{name}, which it does not have"
    return None
