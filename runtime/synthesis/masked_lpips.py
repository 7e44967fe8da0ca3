"""LPIPS inside a mask: how much a drawing has changed its box to the eye, without torch.

Source: Zhang et al. (arXiv:1801.03924), eq. 1, version 0.1 of the weights, as `flawscope.training.segmentation.lpips`;
the mask is DefectFill's, which keeps the candidate that differs most from the normal image inside its box. With f_l the
features at stage l, of unit length at every position, w_l the weight of each channel, and m_l the share of each
position that lies in the mask,

    d = sum over l of (sum over positions of m_l * sum over channels of w_l * (f_l(a) - f_l(b))^2) / (sum of m_l)

A mask that covers everything gives LPIPS itself. The network is computed in NumPy: five convolutions of alexnet, or
thirteen of vgg16, which takes twenty times as long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import safetensors

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, check_array
from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.imaging.images import check_image
from flawscope.open_files import regular_path
from flawscope.torch_file import read_state_dict

MIN_SIDE_PX = 64
"""Smaller images leave no position at the last stage of alexnet."""

_EPS = np.float32(1e-10)
# The normalisation of the published weights, for images in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188])
_SCALE = np.array([0.458, 0.448, 0.450])
_MAX_BYTES = 1 << 30  # vgg16 with its classifier has 528 MiB


@dataclass(frozen=True)
class _Layer:
    """A convolution of torchvision's `features`, with the activation behind it.

    Attributes:
        index: Its number in `features`.
        shape: Channels out and in, and the side of its kernel.
        stride: Its stride.
        pad: Rows and columns of zeros on each side.
        pool: Side of the max pooling before it, with a stride of 2; 0 for none.
        stage: Whether its activations are a stage of LPIPS.
    """

    index: int
    shape: tuple[int, int, int]
    stride: int = 1
    pad: int = 1
    pool: int = 0
    stage: bool = True


_ALEXNET = (
    _Layer(0, (64, 3, 11), stride=4, pad=2),
    _Layer(3, (192, 64, 5), pad=2, pool=3),
    _Layer(6, (384, 192, 3), pool=3),
    _Layer(8, (256, 384, 3)),
    _Layer(10, (256, 256, 3)),
)
_VGG16 = (
    _Layer(0, (64, 3, 3), stage=False),
    _Layer(2, (64, 64, 3)),
    _Layer(5, (128, 64, 3), pool=2, stage=False),
    _Layer(7, (128, 128, 3)),
    _Layer(10, (256, 128, 3), pool=2, stage=False),
    _Layer(12, (256, 256, 3), stage=False),
    _Layer(14, (256, 256, 3)),
    _Layer(17, (512, 256, 3), pool=2, stage=False),
    _Layer(19, (512, 512, 3), stage=False),
    _Layer(21, (512, 512, 3)),
    _Layer(24, (512, 512, 3), pool=2, stage=False),
    _Layer(26, (512, 512, 3), stage=False),
    _Layer(28, (512, 512, 3)),
)
_NETWORKS = {"alexnet": _ALEXNET, "vgg16": _VGG16}


class MaskedLpips:
    """The distance of two images inside a mask.

    Attributes:
        name: `alexnet` or `vgg16`.
        files: Name of each file of weights -> its SHA-256.
    """

    def __init__(self, name: str, layers: list[tuple[Float32Array, Float32Array]], heads: list[Float32Array]) -> None:
        self.name, self.files = name, dict[str, str]()
        self._layers, self._heads = layers, heads

    @classmethod
    def load(cls, features: Path, heads: Path) -> MaskedLpips:
        """Read published weights, as safetensors or as `torch.save` wrote them; nothing in them is executed.

        Args:
            features: torchvision's alexnet or vgg16, with or without its classifier; the tensors tell which.
            heads: Weight of each channel of each stage, `lin0.model.1.weight` [1, C, 1, 1] to `lin4.model.1.weight`.

        Raises:
            DataError: If a file cannot be read, or lacks a tensor of the network, or has it in another shape or with
                numbers that are not finite; or if a head is negative.
        """
        tensors = _read(features)
        name = next(
            (
                name
                for name, layers in _NETWORKS.items()
                if tensors.shapes.get("features.0.weight") == _shape(layers[0].shape)
            ),
            None,
        )
        if name is None:
            raise DataError(
                f"{features}: expected the tensors of torchvision's alexnet or vgg16, with features.0.weight "
                f"[64, 3, 11, 11] or [64, 3, 3, 3], got {len(tensors.shapes)} others. Name the right file."
            )
        layers = []
        for layer in _NETWORKS[name]:
            weight = tensors.take(f"features.{layer.index}.weight", _shape(layer.shape))
            layers.append((weight, tensors.take(f"features.{layer.index}.bias", layer.shape[:1])))
        stages = [layer.shape[0] for layer in _NETWORKS[name] if layer.stage]
        linear = _read(heads)
        weights = [
            linear.take(f"lin{stage}.model.1.weight", (1, count, 1, 1)).ravel() for stage, count in enumerate(stages)
        ]
        if any(bool((weight < 0).any()) for weight in weights):
            raise DataError(f"{heads}: expected weights of at least 0, as LPIPS 0.1 has, got negative ones.")
        loaded = cls(name, layers, weights)
        loaded.files = {path.name: sha256_file(path) for path in (features, heads)}
        return loaded

    def measure(self, first: UInt8Array, second: UInt8Array, mask: BoolArray) -> float:
        """Return the distance of two images inside a mask, at least 0.

        Args:
            first: uint8 [H, W, 3] RGB, sides of at least `MIN_SIDE_PX`.
            second: uint8 [H, W, 3] RGB.
            mask: bool [H, W], not empty.

        Raises:
            ArgumentError: If shapes or dtypes differ, an image is too small or the mask is empty.
        """
        check_image(first, "first")
        check_array(second, "second", first.shape, np.uint8)
        check_array(mask, "mask", first.shape[:2], np.bool_)
        if min(mask.shape) < MIN_SIDE_PX:
            raise ArgumentError(
                f"first: expected sides of at least {MIN_SIDE_PX} pixels, got {mask.shape[1]}x{mask.shape[0]}."
            )
        if not mask.any():
            raise ArgumentError("mask: expected at least one white pixel, got an all-black mask.")
        share = mask.astype(np.float32)
        total = 0.0
        for one, other, head in zip(self._stages(first), self._stages(second), self._heads, strict=True):
            error = np.tensordot(head, (one - other) ** 2, 1).astype(np.float64)
            # By area: a mask of a few pixels still weighs the positions that it touches.
            weight = cv2.resize(share, error.shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float64)
            total += float((weight * error).sum() / weight.sum())
        return total

    def _stages(self, image: UInt8Array) -> Iterator[Float32Array]:
        """Yield the features of unit length of each stage, float32 [C, h, w]."""
        values = (image / 127.5 - 1.0 - _SHIFT) / _SCALE
        x = np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)
        for layer, (weight, bias) in zip(_NETWORKS[self.name], self._layers, strict=True):
            if layer.pool:
                x = _pooled(x, layer.pool)
            x = np.maximum(_convolved(x, weight, bias, layer.stride, layer.pad), np.float32(0.0))
            if layer.stage:
                # Epsilon is added to the norm, as in the published code, not under the root.
                yield x / (np.sqrt((x * x).sum(axis=0, keepdims=True)) + _EPS)


def _convolved(x: Float32Array, weight: Float32Array, bias: Float32Array, stride: int, pad: int) -> Float32Array:
    """Return a convolution, float32 [O, h, w], of [C, H, W] with [O, C, k, k]: a product for each place of the kernel.

    All places in one product would copy the image k² times, which is gigabytes for vgg16.
    """
    side = weight.shape[2]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height, width = ((length - side) // stride + 1 for length in padded.shape[1:])
    result = np.repeat(bias[:, None], height * width, axis=1)
    for row in range(side):
        for column in range(side):
            part = padded[
                :,
                row : row + (height - 1) * stride + 1 : stride,
                column : column + (width - 1) * stride + 1 : stride,
            ]
            result += weight[:, :, row, column] @ part.reshape(len(x), -1)
    return np.asarray(result.reshape(-1, height, width), np.float32)


def _pooled(x: Float32Array, side: int) -> Float32Array:
    """Return the largest of each `side` x `side` pixels, at a stride of 2, float32 [C, h, w]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))[:, ::2, ::2]
    return np.asarray(windows.max(axis=(3, 4)), np.float32)


def _shape(shape: tuple[int, int, int]) -> tuple[int, ...]:
    return (*shape[:2], shape[2], shape[2])


@dataclass(frozen=True)
class _Tensors:
    """Tensors of a file: names and shapes, and how one is read."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Any

    def take(self, name: str, shape: tuple[int, ...]) -> Float32Array:
        """Return a tensor of this shape as float32."""
        if self.shapes.get(name) != shape:
            got = list(self.shapes[name]) if name in self.shapes else "none"
            raise DataError(f"{self.path}: expected {name} {list(shape)}, got {got}. Name the right file.")
        stored: npt.NDArray[Any] = self.read(name)
        if stored.dtype.kind != "f":
            raise DataError(f"{self.path}: expected floating-point tensors, got {stored.dtype} for {name}.")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused below
            numbers = np.ascontiguousarray(stored, np.float32)
        if not np.isfinite(numbers).all():
            raise DataError(f"{self.path}: expected finite numbers, got others in {name}. Get the file again.")
        return numbers


def _read(path: Path) -> _Tensors:
    if path.suffix != ".safetensors":
        saved, tensors = read_state_dict(path, _MAX_BYTES)
        shapes = {name: tuple(tensor.size) for name, tensor in tensors.items()}
        return _Tensors(path, shapes, lambda name: saved.array(tensors[name]))
    with _broken(path):
        file: Any = safetensors.safe_open(regular_path(path), framework="numpy")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping

    def read(name: str) -> npt.NDArray[Any]:
        with _broken(path):
            kind = file.get_slice(name).get_dtype()
            # NumPy has none of its own, and another package may or may not have added one.
            if kind == "BF16":
                raise DataError(f"{path}: expected float32 or float16, got bfloat16 for {name}. Convert the file.")
            tensor: npt.NDArray[Any] = file.get_tensor(name)
            return tensor

    return _Tensors(path, shapes, read)


@contextlib.contextmanager
def _broken(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, safetensors.SafetensorError) as err:
        reason = getattr(err, "strerror", None) or str(err).partition("\n")[0]
        raise DataError(f"{path}: expected weights in safetensors, got: {reason}. Check the file.") from err
