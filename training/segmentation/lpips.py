"""LPIPS: the perceptual distance of two images, from the features of a classifier.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (arXiv:1801.03924), eq. 1,
in version 0.1 of its weights. With f_l the features of an image at stage l, of unit length at every position, and w_l
the weight of each channel,

    d(a, b) = sum over l of 1 / (H_l W_l) * sum over positions and channels of w_l * (f_l(a) - f_l(b))^2

Because no w_l is negative, this is the squared distance of two vectors, u(a) and u(b), whose parts are
sqrt(w_l / (H_l W_l)) * f_l. `Lpips` returns these vectors: the distances of many pairs then need one pass per image,
not one per pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flawscope.errors import DataError, MissingExtra
from flawscope.training.segmentation.pretrained_weights import Weights, fill

MIN_SIDE_PX = 64
"""Smaller images leave no position at the last stage of alexnet."""

_EPS = 1e-10
# The normalisation of the published weights, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class _Trunk:
    """The stages of a classifier's `features`: index of the last layer of each, and its channels."""

    ends: tuple[int, ...]
    channels: tuple[int, ...]


_TRUNKS = {
    "alexnet": _Trunk((1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "vgg16": _Trunk((3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
}


class Lpips(nn.Module):
    """Images in, vectors out, whose squared distances are LPIPS.

    `forward` takes uint8 [N, H, W, 3] RGB with sides of at least `MIN_SIDE_PX` and returns float32 [N, D]; D grows with
    the size, to 2.7 million for alexnet and 32 million for vgg16 at 512 x 512.

    Attributes:
        name: `alexnet` or `vgg16`.
    """

    def __init__(self, name: str, features: nn.Sequential, heads: list[Tensor]) -> None:
        super().__init__()
        self.name = name
        self._ends = _TRUNKS[name].ends
        # The last pooling layer is cut off: stages end at activations.
        self.features = features[: self._ends[-1] + 1]
        for stage, head in enumerate(heads):
            self.register_buffer(f"head{stage}", head.reshape(1, -1, 1, 1).sqrt())
        # Bytes to [-1, 1] and the published normalisation in one product and one sum.
        scale = 1.0 / (127.5 * torch.tensor(_SCALE, dtype=torch.float64))
        self.register_buffer("scale", scale.float())
        offset = -(1.0 + torch.tensor(_SHIFT, dtype=torch.float64)) / torch.tensor(_SCALE, dtype=torch.float64)
        self.register_buffer("offset", offset.float())

    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors of a batch."""
        values = images.to(torch.float32) * self.get_buffer("scale") + self.get_buffer("offset")
        values = values.permute(0, 3, 1, 2)
        parts: list[Tensor] = []
        for index, layer in enumerate(self.features):
            values = layer(values)
            if index in self._ends:
                # Epsilon is added to the norm, as in the published code, not under the root.
                unit = values / (values.square().sum(1, keepdim=True).sqrt() + _EPS)
                weighted = unit * self.get_buffer(f"head{len(parts)}")
                parts.append(weighted.flatten(1) / (values.shape[2] * values.shape[3]) ** 0.5)
        return torch.cat(parts, 1)


def build_lpips(features: Weights, heads: Weights) -> Lpips:
    """Build LPIPS from published weights.

    Args:
        features: torchvision's alexnet or vgg16, with or without its classifier; the tensors tell which of the two.
        heads: Weight of each channel of each stage, `lin0.model.1.weight` [1, C, 1, 1] to `lin4.model.1.weight`.

    Raises:
        DataError: If tensors are missing, of other shapes, unknown, not finite, or if a head is negative.
        MissingExtra: If torchvision is not installed.
    """
    try:
        import torchvision
    except ImportError as err:
        raise MissingExtra("LPIPS", "torchvision", "train") from err
    # On `meta` nothing is allocated and no random numbers are drawn, which would change those of a training around it.
    with torch.device("meta"):
        networks = {name: getattr(torchvision.models, name)(weights=None) for name in _TRUNKS}
    name = _name_of(networks, features)
    trunk: Any = nn.ModuleDict({"features": networks[name].features})
    fill(trunk, features, f"torchvision's {name}", optional=("classifier.",))
    return Lpips(name, trunk["features"], _heads(name, heads))


def _name_of(networks: dict[str, nn.Module], features: Weights) -> str:
    """Return the network whose first layer has the shape of these tensors; `fill` compares the rest."""
    for name, network in networks.items():
        first = "features.0.weight"
        if features.shapes.get(first) == tuple(network.state_dict()[first].shape):
            return name
    names = ", ".join(sorted(features.shapes)[:2])
    raise DataError(
        f"{features.name}: expected the tensors of torchvision's alexnet or vgg16, with features.0.weight "
        f"[64, 3, 11, 11] or [64, 3, 3, 3], got {len(features.shapes)} tensors ({names}...). Name the right file."
    )


def _heads(name: str, weights: Weights) -> list[Tensor]:
    channels = _TRUNKS[name].channels
    # Modules with the names of the published file, so that `fill` checks names and shapes here too.
    heads = nn.ModuleDict()
    with torch.device("meta"):
        for stage, count in enumerate(channels):
            heads[f"lin{stage}"] = nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(count, 1, 1, bias=False)})})
    fill(heads, weights, f"the linear heads of LPIPS for {name}")
    channel_weights = [heads.state_dict()[f"lin{stage}.model.1.weight"] for stage in range(len(channels))]
    # A negative weight has no square root, and the distance would be no metric.
    if any(bool((head < 0).any()) for head in channel_weights):
        raise DataError(f"{weights.name}: expected weights of at least 0, as LPIPS 0.1 has, got negative ones.")
    return channel_weights
