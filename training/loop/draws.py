"""Random numbers of a batch that may be spread over several processes: each image gets those it gets in one process.

A task draws for all images of its batch at once, from a generator that the loop seeded for the step. In a training of
several processes every one of them draws for the whole batch and keeps the rows of its own images: who has an image
changes nothing about it. With a plain generator (validation, previews, one process) these functions are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class BatchGenerator(torch.Generator):
    """A generator for the images of a batch that this process has.

    Attributes:
        whole: Images of the batch over all processes.
        rows: Which of them are here, int64 [N], in the order in which they are here.
    """

    whole: int
    rows: npt.NDArray[np.int64]


def batch_generator(device: torch.device, seed: int, whole: int, rows: npt.NDArray[np.int64]) -> torch.Generator:
    """Return a generator for some images of a batch; see `BatchGenerator`. A plain one where that is all of them."""
    if len(rows) == whole:
        return torch.Generator(device=device).manual_seed(seed)
    generator = BatchGenerator(device=device)
    generator.manual_seed(seed)
    generator.whole, generator.rows = whole, rows
    return generator


def rows_here(generator: torch.Generator) -> npt.NDArray[np.int64] | None:
    """Return which images of the whole batch are in this process, int64 [N]; None for all of them."""
    return generator.rows if isinstance(generator, BatchGenerator) else None


def uniform(
    shape: Sequence[int], generator: torch.Generator, *, dim: int = 0, dtype: torch.dtype | None = None
) -> Tensor:
    """Return numbers uniform in [0, 1) on the generator's device.

    Args:
        shape: Shape of the result.
        generator: Source of all random numbers.
        dim: The dimension that counts the images of the batch.
        dtype: Of the result; None for float32.
    """
    return _of_batch(
        lambda whole: torch.rand(whole, generator=generator, device=generator.device, dtype=dtype),
        shape,
        generator,
        dim,
    )


def normal(
    shape: Sequence[int], generator: torch.Generator, *, dim: int = 0, dtype: torch.dtype | None = None
) -> Tensor:
    """Return numbers of the standard normal distribution on the generator's device; see `uniform`."""
    return _of_batch(
        lambda whole: torch.randn(whole, generator=generator, device=generator.device, dtype=dtype),
        shape,
        generator,
        dim,
    )


def integers(count: int, shape: Sequence[int], generator: torch.Generator, *, dim: int = 0) -> Tensor:
    """Return whole numbers from 0 to `count` - 1, int64, on the generator's device; see `uniform`."""
    return _of_batch(
        lambda whole: torch.randint(0, count, whole, generator=generator, device=generator.device),
        shape,
        generator,
        dim,
    )


def _of_batch(
    draw: Callable[[tuple[int, ...]], Tensor], shape: Sequence[int], generator: torch.Generator, dim: int
) -> Tensor:
    if not isinstance(generator, BatchGenerator):
        return draw(tuple(shape))
    if shape[dim] != len(generator.rows):
        # Rows of something else would be given to images without anybody noticing.
        raise AssertionError(f"expected one row for each of {len(generator.rows)} images, got {shape[dim]}")
    whole = [*shape]
    whole[dim] = generator.whole
    return draw(tuple(whole)).index_select(dim, torch.from_numpy(generator.rows).to(generator.device))
