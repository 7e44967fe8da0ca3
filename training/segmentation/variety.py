"""Diversity of generated images: Inception score and IC-LPIPS by pretrained networks.

Inception score: Salimans et al., Improved Techniques for Training GANs (arXiv:1606.03498). With p(y|x) what a
classifier says of an image and p(y) the mean over images,

    IS = exp(mean over images of KL(p(y|x) || p(y)))

which lies between 1 and the smaller of the numbers of images and of classes: with few images it cannot be large.

IC-LPIPS: Ojha et al., Few-shot Image Generation via Cross-domain Correspondence (arXiv:2104.06820). Every drawn image
belongs to the support image nearest to it by LPIPS; the mean over all pairs in each group is taken, then the mean
over the groups. Copies of the support images have 0. A group with fewer than two images has no pair and is left
out, as is usual here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.errors import DataError, MissingExtra
from flawscope.progress import Progress, no_progress
from flawscope.training.loop.image_batches import Items
from flawscope.training.segmentation.pretrained_weights import Weights, fill

INCEPTION_SIDE_PX = 299
SPLITS = 10
LEAST_IN_SPLIT = 10
"""Images of a split; with fewer than ten times as many there is one split."""

_CLASSES = 1000  # of ImageNet


@dataclass(frozen=True)
class Score:
    """An Inception score.

    Attributes:
        mean: Mean over the splits.
        deviation: Their standard deviation (divided by their number, as is usual here), or None with one split.
        splits: How many.
        images: Of all splits together.
    """

    mean: float
    deviation: float | None
    splits: int
    pictures: int


@dataclass(frozen=True)
class Groups:
    """Drawn images by the support image they are nearest to.

    Attributes:
        sizes: How many belong to each support image.
        means: Mean LPIPS over the pairs of each group, or None where there is no pair.
    """

    sizes: tuple[int, ...]
    means: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """IC-LPIPS: the mean over the groups that have a pair, or None where none has."""
        return mean_of(self.means)


def mean_of(values: tuple[float | None, ...]) -> float | None:
    """Return the mean of the values that are there, or None where none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


# ---- Inception score -------------------------------------------------------------------------------------------------


def build_inception(weights: Weights) -> nn.Module:
    """Build torchvision's inception_v3 of published weights.

    The auxiliary classifier is left out: it is for training. Those weights were carried over from the original network
    and want images in [-1, 1]; torchvision's model gets there from ImageNet's normalisation and back
    (`transform_input`), `class_probabilities` directly.

    Raises:
        DataError: If tensors are missing, of other shapes, unknown or not finite.
        MissingExtra: If torchvision is not installed.
    """
    try:
        import torchvision
    except ImportError as err:
        raise MissingExtra("the Inception score", "torchvision", "train") from err
    with torch.device("meta"):  # no memory, and no random numbers that a training would then get others of
        network: nn.Module = torchvision.models.inception_v3(
            weights=None, init_weights=False, aux_logits=False, transform_input=False, num_classes=_CLASSES
        )
    fill(network, weights, "torchvision's inception_v3", optional=("AuxLogits.",))
    return network


@torch.inference_mode()
def class_probabilities(
    network: nn.Module, items: Items, *, batch: int, device: str, progress: Progress = no_progress
) -> npt.NDArray[np.float64]:
    """Return what a classifier says of images, float64 [N, K], rows summing to 1.

    Args:
        network: Takes float32 [N, 3, H, W] in [-1, 1], gives logits.
        items: uint8 RGB, of the size that the network wants.
        batch: Images at once.
        device: Where the network is.
        progress: Told how many are done.

    Raises:
        DataError: If a logit is not finite.
    """
    found: list[npt.NDArray[np.float64]] = []
    done = 0
    for images in items.batches(range(len(items)), batch):
        values = torch.from_numpy(images).to(device, torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0
        logits = network(values).double()
        if not bool(logits.isfinite().all()):
            raise DataError("inception_v3: expected finite logits, got NaN or infinity. Are these its weights?")
        found.append(logits.softmax(1).cpu().numpy())
        done += len(images)
        progress("Inception score", done, len(items))
    return np.concatenate(found)


def inception_score(probabilities: npt.NDArray[np.float64]) -> Score:
    """Return the Inception score.

    Where every split gets at least `LEAST_IN_SPLIT` images there are `SPLITS`, else there is one. Split i has the
    images i, i + 10, i + 20, ...: in order, each would be of another defect.

    Args:
        probabilities: float64 [N, K], rows summing to 1; N at least 1.
    """
    count = len(probabilities)
    splits = SPLITS if count >= SPLITS * LEAST_IN_SPLIT else 1
    scores = np.array([_one_score(probabilities[first::splits]) for first in range(splits)])
    return Score(float(scores.mean()), float(scores.std()) if splits > 1 else None, splits, count)


def _one_score(probabilities: npt.NDArray[np.float64]) -> float:
    marginal = probabilities.mean(0, keepdims=True)
    # Where a probability is 0 its term is 0, and the logarithm is of 1.
    ratio = np.divide(probabilities, marginal, out=np.ones_like(probabilities), where=probabilities > 0.0)
    return float(np.exp((probabilities * np.log(ratio)).sum(1).mean()))


# ---- IC-LPIPS --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def group_by_nearest(
    embed: Callable[[npt.NDArray[Any]], Tensor],
    support: Items,
    drawn: Items,
    *,
    batch: int,
    budget: int,
    progress: Progress = no_progress,
) -> Groups:
    """Group drawn images by the nearest support image, and take the mean LPIPS over the pairs of each group.

    LPIPS being a squared distance of vectors u, the sum over all pairs of n images is

        n * sum of |u_i - s|^2 - |sum of (u_i - s)|^2

    for any s, of which the support image's vector leaves the smallest numbers. So all pairs are taken, at the cost of
    two looks at each image, and no vectors are kept but those of support images.

    Args:
        embed: Returns the vectors of a batch, [N, D]; those of `flawscope.training.segmentation.lpips.Lpips`.
        support: Support images, at least 1. Of equally near ones the first is taken.
        drawn: Drawn images.
        batch: Images at once.
        budget: Bytes for vectors of support images; with less than they need the drawn ones are looked at anew for
            each part of them.
        progress: Told how many looks are done.

    Raises:
        DataError: If a distance is not finite.
    """
    first = embed(_one(support, 0))
    at_once = max(1, budget // (first.numel() * first.element_size()))
    parts = range(0, len(support), at_once)
    looks = _Looks(progress, len(drawn) * (len(parts) + 1))
    distances = np.empty((len(drawn), len(support)))
    for start in parts:
        anchors = torch.cat([embed(_one(support, one)) for one in range(start, min(start + at_once, len(support)))])
        row = 0
        for images in drawn.batches(range(len(drawn)), batch):
            for vector in embed(images):
                for column, anchor in enumerate(anchors, start):
                    distances[row, column] = float((vector - anchor).square().sum(dtype=torch.float64))
                row += 1
            looks.more(len(images))
    if not np.isfinite(distances).all():
        raise DataError("LPIPS: expected finite distances, got NaN or infinity. Are these the weights of its networks?")
    nearest = distances.argmin(1)
    members = [np.flatnonzero(nearest == one) for one in range(len(support))]
    means = tuple(_pair_mean(embed, support, drawn, one, of, batch, looks) for one, of in enumerate(members))
    return Groups(tuple(len(of) for of in members), means)


def _one(items: Items, number: int) -> npt.NDArray[Any]:
    (found,) = items.batches([number], 1)
    return found


class _Looks:
    """Counts images that were looked at."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def more(self, count: int) -> None:
        self._done += count
        self._progress("IC-LPIPS", self._done, self._total)


def _pair_mean(
    embed: Callable[[npt.NDArray[Any]], Tensor],
    support: Items,
    drawn: Items,
    one: int,
    members: npt.NDArray[np.int64],
    batch: int,
    looks: _Looks,
) -> float | None:
    """Return the mean LPIPS over all pairs of a group, or None where there is none."""
    count = len(members)
    if count < 2:
        looks.more(count)
        return None
    anchor = embed(_one(support, one))[0]
    total = torch.zeros_like(anchor, dtype=torch.float64)
    squares = 0.0
    for images in drawn.batches(members, batch):
        for vector in embed(images):
            offset = (vector - anchor).double()
            total += offset
            squares += float(offset.square().sum())
        looks.more(len(images))
    pairs = count * (count - 1) / 2
    # Rounding could leave a group of equal images a little below 0.
    return max(0.0, (count * squares - float(total.square().sum())) / pairs)
