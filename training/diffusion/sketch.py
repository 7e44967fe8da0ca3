"""Sketches of images: edges without fine detail, and their corruption in training so that the network cannot copy them.

A sketch shows a network where the parts of an image are. The sketch of an anomalous image contains the edges of the
defect too. So it is shrunk and enlarged again, which removes fine edges, and in training parts of it are replaced, so
that the network learns to trust the image where the two disagree.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.errors import ArgumentError
from flawscope.imaging.edges import canny_edges
from flawscope.imaging.map_upsampling import upsample_matrix
from flawscope.training.loop import draws

Backend = Literal["sobel", "canny"]

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in OpenCV
_SOBEL_LARGEST = 20.0**0.5
"""Largest magnitude that Sobel's two filters reach on values in [0, 1]: four along one axis and two along the other."""
_BOXES = 3  # at most, in a corrupted sketch
_BOX_SIDES = (0.125, 0.5)  # shortest and longest, as shares of the image's


class Sketcher(nn.Module):
    """Image in, sketch out.

    `forward` takes uint8 [N, H, W, 3] RGB and returns float32 [N, 1, H, W] in [0, 1], without fine detail. With `sobel`
    it can be exported to ONNX, and it also takes float images from 0 to 255 and is differentiable; with `canny` only
    `soften` is.

    Args:
        backend: `sobel`, the magnitude of the luminance's gradient over its largest possible value; `canny`, the edges
            of `flawscope.imaging.edges`.
        size: Height and width of the images in pixels.
        sketch_size: Longer side in pixels to which sketches are shrunk; from that of the images on, they keep all
            detail.

    Raises:
        ArgumentError: If a size is not positive.
    """

    def __init__(self, backend: Backend, size: tuple[int, int], sketch_size: int) -> None:
        super().__init__()
        if min(*size, sketch_size) < 1:
            raise ArgumentError(f"sketch_size: expected sizes of at least 1 pixel, got {sketch_size} of {list(size)}.")
        self.backend, self.size = backend, size
        share = min(1.0, sketch_size / max(size))
        rows, columns = (_softening(side, max(1, round(side * share))) for side in size)
        self.register_buffer("rows", torch.from_numpy(rows), persistent=False)
        self.register_buffer("columns", torch.from_numpy(np.ascontiguousarray(columns.T)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the sketches of a batch."""
        return self.soften(self.edges(images))

    def edges(self, images: Tensor) -> Tensor:
        """Return the edges of a batch in full detail, float32 [N, 1, H, W] in [0, 1].

        Args:
            images: As in `forward`.

        Raises:
            ArgumentError: If the images are of another size, or not uint8 for `canny`.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (*self.size, 3):
            raise ArgumentError(f"images: expected [N, {self.size[0]}, {self.size[1]}, 3], got {_shape(images)}.")
        if self.backend == "sobel":
            return sobel_edges(images)
        if images.dtype != torch.uint8:
            raise ArgumentError(f"images: expected uint8 for canny, got {images.dtype}.")
        # On the CPU, by the runtime's own implementation: training and inspection must see the same edges.
        return torch.from_numpy(canny_edges(images.cpu().numpy())).to(images.device)

    def soften(self, edges: Tensor | npt.NDArray[Any]) -> Tensor:
        """Return edges without fine detail, float32 [N, 1, H, W] in [0, 1]: area means, upsampled bilinearly.

        Args:
            edges: [N, 1, H, W], float in [0, 1] or uint8 from 0 to 255; an array is moved to the sketcher's device.

        Raises:
            ArgumentError: If they are of another shape or type.
        """
        if isinstance(edges, np.ndarray):
            edges = torch.from_numpy(edges).to(self.get_buffer("rows").device)
        if edges.ndim != 4 or tuple(edges.shape[1:]) != (1, *self.size):
            raise ArgumentError(f"edges: expected [N, 1, {self.size[0]}, {self.size[1]}], got {_shape(edges)}.")
        if edges.dtype != torch.uint8 and not edges.is_floating_point():
            raise ArgumentError(f"edges: expected uint8 from 0 to 255 or floats from 0 to 1, got {edges.dtype}.")
        values = edges.to(torch.float32)
        if edges.dtype == torch.uint8:
            values = values / 255.0
        # Both resizes are linear and separable: together they are two matrix products, the same in every runtime.
        return self.get_buffer("rows") @ values @ self.get_buffer("columns")


def sobel_edges(images: Tensor) -> Tensor:
    """Return the magnitude of the luminance's gradient over its largest possible value.

    Args:
        images: [N, H, W, 3] RGB, uint8, or floats from 0 to 255, for which the result is differentiable. The border is
            padded by repetition.

    Returns:
        Float32 [N, 1, H, W] in [0, 1].
    """
    # The cast comes first: TensorRT rejects a transpose of uint8.
    weights = torch.tensor(_LUMINANCE, device=images.device) / 255.0
    gray = (images.to(torch.float32) @ weights)[:, None]
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device)
    filters = torch.stack([across, across.T])[:, None] / _SOBEL_LARGEST
    slopes = functional.conv2d(functional.pad(gray, (1, 1, 1, 1), mode="replicate"), filters)
    # `vector_norm` has the gradient 0 in flat areas; a square root of a sum of squares would give NaN.
    magnitude: Tensor = torch.linalg.vector_norm(slopes, dim=1, keepdim=True)
    return magnitude.clamp(max=1.0)


def corrupt_sketches(sketches: Tensor, generator: torch.Generator, drop: float, corrupt: float) -> Tensor:
    """Return corrupted sketches for training, so that copying the sketch is no solution.

    A corrupted sketch has up to three boxes, with sides from an eighth to a half of its own. Each is either erased or
    taken from the same place of another sketch of the batch, with equal chance; in a batch of one all are erased.
    Applied before `Sketcher.soften`, so that the borders of the boxes are as soft as everything else.

    Args:
        sketches: Sketches or edges, float32 [N, 1, H, W]; they are not changed.
        generator: On their device; the same state gives the same result.
        drop: Share of sketches that are left out, that is, set to zero.
        corrupt: Share of sketches that get boxes.

    Returns:
        Float32 [N, 1, H, W].
    """
    count, _, height, width = sketches.shape
    device = sketches.device

    def draw(*shape: int) -> Tensor:
        return draws.uniform(shape, generator)

    # Everything is drawn for every sketch, used or not: the number of draws must not depend on their outcome.
    is_dropped, is_corrupted = draw(count) < drop, draw(count) < corrupt
    boxes = 1 + (draw(count) * _BOXES).long()
    numbers = torch.arange(count, device=device)
    corrupted = sketches
    for box in range(_BOXES):
        inside = _box_inside(draw(count, 2), height)[:, :, None] & _box_inside(draw(count, 2), width)[:, None, :]
        inside = inside & (is_corrupted & (box < boxes))[:, None, None]
        # Never the sketch itself, save in a batch of one.
        other = (numbers + 1 + (draw(count) * (count - 1)).long()) % count
        is_pasted = (draw(count) < 0.5) & (other != numbers)
        content = torch.where(is_pasted[:, None, None, None], sketches[other], torch.zeros_like(sketches))
        corrupted = torch.where(inside[:, None], content, corrupted)
    return torch.where(is_dropped[:, None, None, None], torch.zeros_like(corrupted), corrupted)


def _box_inside(drawn: Tensor, side: int) -> Tensor:
    """Return bool [N, side], true within intervals whose length and position come from `drawn`, [N, 2] in [0, 1)."""
    least, most = _BOX_SIDES
    length = ((least + drawn[:, :1] * (most - least)) * side).round().clamp(min=1.0)
    start = (drawn[:, 1:] * (side - length + 1.0)).floor()
    places = torch.arange(side, device=drawn.device)
    return (places >= start) & (places < start + length)


def _softening(side: int, smaller: int) -> npt.NDArray[np.float32]:
    """Return the matrix [side, side] that shrinks an axis by area means and enlarges it bilinearly."""
    if smaller == side:
        return np.eye(side, dtype=np.float32)
    # Row i of `means` holds the share of every pixel in the i-th of `smaller` equal intervals.
    borders = np.arange(smaller + 1) * side / smaller
    places = np.arange(side)
    overlap = np.minimum(borders[1:, None], places + 1.0) - np.maximum(borders[:-1, None], places)
    means = np.clip(overlap, 0.0, None) * smaller / side
    softening: npt.NDArray[np.float32] = (upsample_matrix(smaller, side) @ means).astype(np.float32)
    return softening


def _shape(values: Tensor) -> list[int]:
    return [int(side) for side in values.shape]
