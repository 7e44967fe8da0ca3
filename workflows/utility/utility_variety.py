"""Inception score and IC-LPIPS of the accepted images of a synthetic set, if the networks' weights are given.

They measure diversity, of each defect type and of all images, not whether the images help: images of noise are
diverse. No verdict depends on them.

Whole images are compared, as in the literature, so the diversity of the normal images that were drawn on is part of
the figures. The synthetic images are those the benchmark learns from; the support images are the whole support set.
Choices that the papers leave open:

    Inception score   images resized to 299 x 299, by area if both sides shrink, bilinear otherwise, without cropping
    IC-LPIPS          all images of a defect type at one size: the most frequent size of the synthetic ones, scaled down
                      until no side is above 512 px or up until none is below 64 px, resized in the same way

Weights are read from safetensors, or from a file of `torch.save` without unpickling it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from flawscope.config import LabelledConfig
from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.imaging.images import Preprocessing, read_image
from flawscope.open_files import regular_path
from flawscope.progress import Progress
from flawscope.torch_file import read_state_dict
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.segmentation.lpips import MIN_SIDE_PX, Lpips, build_lpips
from flawscope.training.segmentation.variety import (
    INCEPTION_SIDE_PX,
    Score,
    build_inception,
    class_probabilities,
    group_by_nearest,
    inception_score,
    mean_of,
)
from flawscope.workflows.utility.utility_data import DefectImages

MAX_SIDE_PX = 512
"""Larger images are scaled down before they are compared by LPIPS."""

_MAX_BYTES = 1 << 30  # of a file of weights: vgg16 with its classifier has 528 MB
_SUFFIX = ".safetensors"
_BATCH_PIXELS, _BATCH = 1 << 20, 16  # at once: vgg16 takes about 1 GB for four images of 512 x 512


# ---- Records ---------------------------------------------------------------------------------------------------------


class WeightFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of weights the figures depend on.

    Attributes:
        network: `inception_v3`, `alexnet`, `vgg16`, or `LPIPS heads`.
        sha256: SHA-256 of the file.
    """

    network: str
    sha256: str


class SupportGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The synthetic images nearest to one support image.

    Attributes:
        support: Path of the support image relative to the dataset's root.
        pictures: Number of synthetic images nearest to it.
        lpips: Mean LPIPS over their pairs; None with fewer than two.
    """

    support: str
    pictures: int
    lpips: float | None


class DefectVariety(msgspec.Struct, frozen=True, kw_only=True):
    """Diversity of the synthetic images of one defect type.

    Attributes:
        pictures: Number of images.
        inception_score: None without its weights.
        ic_lpips: Mean over `groups` that have a pair; None without the weights, or if no group has a pair.
        groups: By support image; empty without the weights, or without support images of this defect type.
        size: Height and width in pixels at which images were compared by LPIPS; None if they were not.
    """

    pictures: int
    inception_score: Score | None
    ic_lpips: float | None
    groups: tuple[SupportGroup, ...]
    size: tuple[int, int] | None


class Variety(msgspec.Struct, frozen=True, kw_only=True):
    """Diversity of all synthetic images.

    Attributes:
        pictures: Number of images.
        inception_score: Of all images; None without its weights.
        ic_lpips: Mean over the defect types that have one, or None.
        defects: Defect type -> the same for it alone.
        weights: The files of the networks.
    """

    pictures: int
    inception_score: Score | None
    ic_lpips: float | None
    defects: dict[str, DefectVariety]
    weights: tuple[WeightFile, ...]


# ---- Weights ---------------------------------------------------------------------------------------------------------


class _Safetensors:
    """Tensors of a safetensors file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            file: Any = safetensors.safe_open(regular_path(path), framework="pt")
            # Shapes alone are read here; a tensor is read when a network asks for it.
            names = file.keys()
            self.shapes: Mapping[str, tuple[int, ...]] = {
                name: tuple(file.get_slice(name).get_shape()) for name in names
            }
        except (OSError, SafetensorError) as err:
            reason = getattr(err, "strerror", None) or str(err).partition("\n")[0]
            raise DataError(f"{path}: expected weights in safetensors, got: {reason}. Check the file.") from err
        self._file = file

    def read(self, name: str) -> npt.NDArray[Any]:
        tensor: Tensor = self._file.get_tensor(name)
        # Float32 first: NumPy has no bfloat16.
        array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        return array


class _TorchFile:
    """Tensors of a state dict that `torch.save` wrote.

    `torch.load` is not used: the file is a pickle, which can run code. Nothing of it is executed here.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._saved, self._tensors = read_state_dict(path, _MAX_BYTES)
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tensor.size for name, tensor in self._tensors.items()}

    def read(self, name: str) -> npt.NDArray[Any]:
        return self._saved.array(self._tensors[name])


def _open(path: Path) -> _Safetensors | _TorchFile:
    return _Safetensors(path) if path.suffix == _SUFFIX else _TorchFile(path)


@dataclass(frozen=True)
class VarietyNetworks:
    """Networks whose weights were given, and their files."""

    inception: nn.Module | None
    lpips: Lpips | None
    files: tuple[WeightFile, ...]


def load_networks(
    inception: Path | None, lpips: Path | None, heads: Path | None, device: str
) -> VarietyNetworks | None:
    """Return the networks whose weights are given, or None if there are none.

    Args:
        inception: State dict of torchvision's inception_v3 (ImageNet), or None.
        lpips: State dict of torchvision's alexnet or vgg16, with or without the classifier, or None.
        heads: Linear weights of LPIPS 0.1 for that network, or None.
        device: Device of the networks.

    Raises:
        ArgumentError: If one of `lpips` and `heads` is given without the other.
        DataError: If a file cannot be read, or does not hold exactly the tensors of its network.
    """
    if (lpips is None) != (heads is None):
        given, missing = ("--lpips", "--lpips-heads") if heads is None else ("--lpips-heads", "--lpips")
        raise ArgumentError(f"{missing}: expected a file together with {given}, got none. Give both, or neither.")
    files = []
    classifier = measure = None
    if inception is not None:
        classifier = build_inception(_open(inception)).to(device)
        files.append(WeightFile(network="inception_v3", sha256=sha256_file(inception)))
    if lpips is not None and heads is not None:
        measure = build_lpips(_open(lpips), _open(heads)).to(device)
        files.append(WeightFile(network=measure.name, sha256=sha256_file(lpips)))
        files.append(WeightFile(network="LPIPS heads", sha256=sha256_file(heads)))
    return VarietyNetworks(classifier, measure, tuple(files)) if files else None


# ---- Figures ---------------------------------------------------------------------------------------------------------


def take_variety(
    networks: VarietyNetworks,
    defects: Mapping[str, DefectImages],
    config: LabelledConfig,
    device: str,
    progress: Progress,
) -> Variety:
    """Return the diversity of synthetic images.

    Args:
        networks: The networks that measure it.
        defects: Defect type -> its images, at least one of them synthetic.
        config: Settings, of which `num_workers` and `memory_budget_mb` are used.
        device: Device of the networks.
        progress: Called with what is being done.

    Raises:
        DataError: If the networks give numbers that are not finite.
        ImageError: If an image cannot be read.
    """
    probabilities = {}
    if networks.inception is not None:
        for name, images in defects.items():
            probabilities[name] = class_probabilities(
                networks.inception,
                _images(images.drawn, (INCEPTION_SIDE_PX, INCEPTION_SIDE_PX), config),
                batch=_batch_of((INCEPTION_SIDE_PX, INCEPTION_SIDE_PX)),
                device=device,
                progress=_titled(progress, f"Inception score, {name}"),
            )
    varieties = {
        name: _defect_variety(networks.lpips, images, probabilities.get(name), config, device, progress, name)
        for name, images in defects.items()
    }
    return Variety(
        pictures=sum(variety.pictures for variety in varieties.values()),
        # Over all images anew, not a mean over the types: diversity between the types belongs to it.
        inception_score=inception_score(np.concatenate(list(probabilities.values()))) if probabilities else None,
        ic_lpips=mean_of(tuple(variety.ic_lpips for variety in varieties.values())),
        defects=varieties,
        weights=networks.files,
    )


def _defect_variety(
    network: Lpips | None,
    defect: DefectImages,
    probabilities: npt.NDArray[np.float64] | None,
    config: LabelledConfig,
    device: str,
    progress: Progress,
    name: str,
) -> DefectVariety:
    score = None if probabilities is None else inception_score(probabilities)
    if network is None or not defect.support:
        return DefectVariety(pictures=len(defect.drawn), inception_score=score, ic_lpips=None, groups=(), size=None)
    # By the synthetic images alone: support images may have another size, and are brought to this one.
    size = compared_size([read_image(path).shape[:2] for path in defect.drawn])

    def embed(images: npt.NDArray[Any]) -> Tensor:
        vectors: Tensor = network(torch.from_numpy(images).to(device))
        return vectors

    groups = group_by_nearest(
        embed,
        _images(list(defect.support.values()), size, config),
        _images(defect.drawn, size, config),
        batch=_batch_of(size),
        # Bytes, for vectors of support images; the readers of both sides have a quarter of the memory each.
        budget=config.data.memory_budget_mb * 1_000_000 // 2,
        progress=_titled(progress, f"IC-LPIPS, {name}"),
    )
    rows = zip(defect.support, groups.sizes, groups.means, strict=True)
    return DefectVariety(
        pictures=len(defect.drawn),
        inception_score=score,
        ic_lpips=groups.mean,
        groups=tuple(SupportGroup(support=place, pictures=count, lpips=mean) for place, count, mean in rows),
        size=size,
    )


def compared_size(sizes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Return the height and width at which images of these sizes are compared by LPIPS.

    The most frequent size, and of equally frequent ones the largest; scaled down until no side is above `MAX_SIDE_PX`,
    or up until none is below the smallest the networks take. If both are impossible, the aspect ratio changes.
    """
    counts = Counter(sizes)
    # The size itself comes last in the key, so that a tie does not depend on the order of the images.
    height, width = max(counts, key=lambda size: (counts[size], size[0] * size[1], size))
    scale = max(min(1.0, MAX_SIDE_PX / max(height, width)), MIN_SIDE_PX / min(height, width))
    return min(MAX_SIDE_PX, round(height * scale)), min(MAX_SIDE_PX, round(width * scale))


def _images(paths: Sequence[Path], size: tuple[int, int], config: LabelledConfig) -> ImageReader:
    return ImageReader(paths, Preprocessing(size), config.data.num_workers, config.data.memory_budget_mb // 4)


def _batch_of(size: tuple[int, int]) -> int:
    # At least one: a single image above _BATCH_PIXELS is still compared.
    return max(1, min(_BATCH, _BATCH_PIXELS // (size[0] * size[1])))


def _titled(progress: Progress, title: str) -> Progress:
    return lambda _, finished, total: progress(title, finished, total)
