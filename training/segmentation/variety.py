"""Diversity of generated images: Inception score and IC-LPIPS by pretrained networks.

Inception score: Salimans et al., Improved Techniques for Training GANs (arXiv:1606.03498). With p(y|x) what a
classifier says of an image and p(y) the mean over images,

    IS = exp(mean over images of KL(p(y|x) || p(y)))

which lies between 1 and the number of images or of classes, whichever is smaller: with few images it cannot be large.

IC-LPIPS: Ojha et al., Few-shot Image Generation via Cross-domain Correspondence (arXiv:2104.06820). Every drawn image
belongs to the group of the support image nearest to it by LPIPS; the result is the mean over the groups of the mean
LPIPS over all pairs in a group. Copies of the support images give 0. A group with fewer than two images has no pair
and is left out, as is common practice.
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
"""Fewest images in a split; with fewer than `SPLITS` times as many there is one split."""

_CLASSES = 1000  # of ImageNet


@dataclass(frozen=True)
class Score:
    """An Inception score.

    Attributes:
        mean: Mean over the splits.
        deviation: Standard deviation over the splits (divided by their number, as is common), or None with one split.
        splits: Number of splits.
        pictures: Number of images in all splits together.
    """

    mean: float
    deviation: float | None
    splits: int
    pictures: int


@dataclass(frozen=True)
class Groups:
    """Drawn images, grouped by their nearest support image.

    Attributes:
        sizes: Number of images in the group of each support image.
        means: Mean LPIPS over the pairs of each group, or None without a pair.
    """

    sizes: tuple[int, ...]
    means: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """IC-LPIPS: the mean over the groups that have a pair, or None if none has."""
        return mean_of(self.means)


def mean_of(values: tuple[float | None, ...]) -> float | None:
    """Return the mean of the values that are not None, or None if there are none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


# ---- Inception score -------------------------------------------------------------------------------------------------


def build_inception(weights: Weights) -> nn.Module:
    """Build torchvision's inception_v3 from published weights.

    The auxiliary classifier is left out, since only training uses it. The weights were converted from the original
    network and expect images in [-1, 1]. torchvision's model converts to that from ImageNet's normalisation
    (`transform_input`); `class_probabilities` does it directly.

    Raises:
        DataError: If tensors are missing, of other shapes, unknown or not finite.
        MissingExtra: If torchvision is not installed.
    """
    try:
        import torchvision
    except ImportError as err:
        raise MissingExtra("the Inception score", "torchvision", "train") from err
    # On `meta` nothing is allocated and no random numbers are drawn, which would change those of a training around it.
    with torch.device("meta"):
        network: nn.Module = torchvision.models.inception_v3(
            weights=None, init_weights=False, aux_logits=False, transform_input=False, num_classes=_CLASSES
        )
    fill(network, weights, "torchvision's inception_v3", optional=("AuxLogits.",))
    return network


@torch.inference_mode()
def class_probabilities(
    network: nn.Module, items: Items, *, batch: int, device: str, progress: Progress = no_progress
) -> npt.NDArray[np.float64]:
    """Return the class probabilities of images, float64 [N, K], rows summing to 1.

    Args:
        network: Takes float32 [N, 3, H, W] in [-1, 1], returns logits.
        items: uint8 RGB, of the size that the network needs.
        batch: Images per batch.
        device: Device of the network.
        progress: Receives the number of images so far.

    Raises:
        DataError: If a logit is not finite.
    """
    probabilities: list[npt.NDArray[np.float64]] = []
    count = 0
    for images in items.batches(range(len(items)), batch):
        values = torch.from_numpy(images).to(device, torch.float32).permute(0, 3, 1, 2) / 127.5 - 1.0
        logits = network(values).double()  # the score takes logarithms of small probabilities
        if not bool(logits.isfinite().all()):
            raise DataError("inception_v3: expected finite logits, got NaN or infinity. Are these its weights?")
        probabilities.append(logits.softmax(1).cpu().numpy())
        count += len(images)
        progress("Inception score", count, len(items))
    return np.concatenate(probabilities)


def inception_score(probabilities: npt.NDArray[np.float64]) -> Score:
    """Return the Inception score.

    There are `SPLITS` splits if each gets at least `LEAST_IN_SPLIT` images, else one. Split i has the images i, i + 10,
    i + 20, ...: consecutive images would make each split one of few defect types.

    Args:
        probabilities: float64 [N, K], rows summing to 1; N at least 1.
    """
    count = len(probabilities)
    splits = SPLITS if count >= SPLITS * LEAST_IN_SPLIT else 1
    scores = np.array([_split_score(probabilities[first::splits]) for first in range(splits)])
    return Score(float(scores.mean()), float(scores.std()) if splits > 1 else None, splits, count)


def _split_score(probabilities: npt.NDArray[np.float64]) -> float:
    marginal = probabilities.mean(0, keepdims=True)
    # p·log p is 0 at p = 0: there the ratio stays 1, whose logarithm is 0, in place of NaN.
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
    """Group drawn images by the nearest support image, and return the mean LPIPS over the pairs of each group.

    LPIPS is a squared distance of vectors u, so the sum over all pairs of n images is

        n * sum of |u_i - s|^2 - |sum of (u_i - s)|^2

    for any s; the vector of the support image keeps the numbers small. So all pairs count, at the cost of two passes
    over the images, and only the vectors of support images are kept in memory.

    Args:
        embed: Returns the vectors of a batch, [N, D], as `flawscope.training.segmentation.lpips.Lpips` does.
        support: Support images, at least 1. Of equally near ones the first counts.
        drawn: Drawn images.
        batch: Images per batch.
        budget: Bytes for vectors of support images. If they need more, they are split, and the drawn images are
            embedded anew for each part.
        progress: Receives the number of embedded drawn images.

    Raises:
        DataError: If a distance is not finite.
    """
    first = embed(_item(support, 0))
    at_once = max(1, budget // (first.numel() * first.element_size()))
    parts = range(0, len(support), at_once)
    counter = _Counter(progress, len(drawn) * (len(parts) + 1))
    distances = np.empty((len(drawn), len(support)))
    for start in parts:
        stop = min(start + at_once, len(support))
        # One by one, as in `_pair_mean`: in a batch an image may get other last bits.
        anchors = torch.cat([embed(_item(support, number)) for number in range(start, stop)])
        row = 0
        for images in drawn.batches(range(len(drawn)), batch):
            for vector in embed(images):
                # Pair by pair: the differences of all pairs at once, millions of numbers each, would not fit in memory.
                for column, anchor in enumerate(anchors, start):
                    distances[row, column] = float((vector - anchor).square().sum(dtype=torch.float64))
                row += 1
            counter.add(len(images))
    if not np.isfinite(distances).all():
        raise DataError("LPIPS: expected finite distances, got NaN or infinity. Are these the weights of its networks?")
    nearest = distances.argmin(1)
    groups = [np.flatnonzero(nearest == number) for number in range(len(support))]
    means = tuple(
        _pair_mean(embed, support, drawn, number, members, batch, counter) for number, members in enumerate(groups)
    )
    return Groups(tuple(len(members) for members in groups), means)


def _item(items: Items, number: int) -> npt.NDArray[Any]:
    """Return one item, as a batch."""
    (batch,) = items.batches([number], 1)
    return batch


class _Counter:
    """Counts embedded images over all passes, for the progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def add(self, count: int) -> None:
        self._count += count
        self._progress("IC-LPIPS", self._count, self._total)


def _pair_mean(
    embed: Callable[[npt.NDArray[Any]], Tensor],
    support: Items,
    drawn: Items,
    number: int,
    members: npt.NDArray[np.int64],
    batch: int,
    counter: _Counter,
) -> float | None:
    """Return the mean LPIPS over all pairs of the group of a support image, or None without a pair."""
    count = len(members)
    if count < 2:
        counter.add(count)
        return None
    anchor = embed(_item(support, number))[0]
    total = torch.zeros_like(anchor, dtype=torch.float64)
    squares = 0.0
    for images in drawn.batches(members, batch):
        for vector in embed(images):
            # float64: the formula subtracts two large, nearly equal sums.
            offset = (vector - anchor).double()
            total += offset
            squares += float(offset.square().sum())
        counter.add(len(images))
    pairs = count * (count - 1) / 2
    # Rounding may bring a group of equal images slightly below 0.
    return max(0.0, (count * squares - float(total.square().sum())) / pairs)
