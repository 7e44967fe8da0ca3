"""State dicts with the names and shapes of published ones, and random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import torchvision
from torch import Tensor

CHANNELS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}


class Held:
    """Tensors as a file of weights shows them."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name, self.tensors = name, dict(tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def read(self, name: str) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self.tensors[name].numpy()
        return found


def features_state(name: str) -> dict[str, Tensor]:
    """The `features` of alexnet or vgg16."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
    return _filled({key: value for key, value in state.items() if key.startswith("features.")})


def heads_state(name: str) -> dict[str, Tensor]:
    """The linear heads of LPIPS for alexnet or vgg16."""
    chance = np.random.default_rng(1)
    return {
        f"lin{stage}.model.1.weight": torch.from_numpy(chance.random((1, count, 1, 1), np.float32))
        for stage, count in enumerate(CHANNELS[name])
    }


def inception_state() -> dict[str, Tensor]:
    """All of inception_v3, with the auxiliary classifier, as published."""
    with torch.device("meta"):
        state = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=True).state_dict()
    return _filled(state)


def write_backbone_weights(path: Path, network: str, seed: int = 0) -> Path:
    """Write weights of a network of timm, drawn as it draws them before a training; return the path.

    What a student or an extractor can learn from them does not depend on what they are good for.
    """
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = timm.create_model(network).state_dict()
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def _filled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(5)
    made = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.zeros((), dtype=torch.int64)
        elif tensor.ndim > 1:  # so that numbers stay as large from layer to layer
            size = (2.0 / tensor[0].numel()) ** 0.5
            made[name] = torch.randn(tensor.shape, generator=chance) * size
        else:
            made[name] = torch.ones(tensor.shape) if name.endswith(("bn.weight", "var")) else torch.zeros(tensor.shape)
    return made
