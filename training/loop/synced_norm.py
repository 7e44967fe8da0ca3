"""Batch norm over the images of all processes, so that N processes normalise a batch as one does.

torch's own SyncBatchNorm does so on GPUs alone, and takes a batch from each process. This one also runs on a CPU, with
gloo, and leaves out a process that has no image of a batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Sum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, in place; every process has to enter."""


class BatchSharing:
    """How a batch is spread over the processes.

    Args:
        rank: Number of this process.
        world: Processes in all.
        add: Sums tensors over them.

    Attributes:
        has_images: Whether this process has images of the present batch; if not, it goes through the motions with an
            image that does not count.
    """

    def __init__(self, rank: int, world: int, add: Sum) -> None:
        self.rank, self.world, self.add = rank, world, add
        self.has_images = True


@contextlib.contextmanager
def synced_batch_norms(network: nn.Module, sharing: BatchSharing) -> Iterator[None]:
    """Let the batch norms of a network measure over all processes while they train; afterwards they are as before."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        # On the instance: its class, parameters, buffers and names in the state stay what they are.
        vars(norm)["forward"] = functools.partial(_forward, norm, sharing)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


def _forward(norm: Any, sharing: BatchSharing, images: Tensor) -> Tensor:
    if not norm.training:
        output: Tensor = type(norm).forward(norm, images)
        return output
    axes = [0, *range(2, images.ndim)]
    # Half precision has too few digits for statistics.
    values = images if images.dtype == torch.float64 else images.float()
    count, mean, variance = _measured(values.detach(), axes, sharing)
    if norm.track_running_stats:
        _update(norm, count, mean, variance)
    output = _Normalise.apply(values, mean, torch.rsqrt(variance + norm.eps), count, sharing)
    if norm.affine:
        shape = [1, -1] + [1] * (images.ndim - 2)
        output = output * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    output = output.to(images.dtype)
    # timm's batch norms have the activation in them.
    for part in ("drop", "act"):
        output = getattr(norm, part)(output) if hasattr(norm, part) else output
    return output


def _measured(values: Tensor, axes: list[int], sharing: BatchSharing) -> tuple[Tensor, Tensor, Tensor]:
    """Return the number of values of a channel over all processes, and mean and variance of each channel."""
    channels = values.shape[1]
    own = torch.zeros((sharing.world, 2 * channels + 1), device=values.device, dtype=values.dtype)
    if sharing.has_images:
        variance, mean = torch.var_mean(values, dim=axes, correction=0)
        own[sharing.rank] = torch.cat([mean, variance, mean.new_tensor([values.numel() / channels])])
    # Each has a row of its own: sums of squares instead would lose the variance of channels far from zero.
    parts = sharing.add(own)
    means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(dim=0) / count
    return count, mean, ((variances + (means - mean).square()) * counts).sum(dim=0) / count


@torch.no_grad()
def _update(norm: Any, count: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as torch does."""
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    unbiased = variance * (count / (count - 1.0).clamp_min(1.0))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)


class _Normalise(torch.autograd.Function):
    """(x − mean) / deviation, where both depend on the images of all processes."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, mean: Tensor, inverse: Tensor, count: Tensor, sharing: BatchSharing
    ) -> Tensor:
        shape = [1, -1] + [1] * (values.ndim - 2)
        normalised = (values - mean.reshape(shape)) * inverse.reshape(shape)
        ctx.save_for_backward(normalised, inverse, count)
        ctx.sharing = sharing
        return normalised

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        normalised, inverse, count = ctx.saved_tensors
        axes, shape = [0, *range(2, gradient.ndim)], [1, -1] + [1] * (gradient.ndim - 2)
        # A process without images has a loss of weight 0, so it adds nothing here; its own gradient is 0.
        sums = torch.stack([gradient.sum(dim=axes), (gradient * normalised).sum(dim=axes)])
        sums = ctx.sharing.add(sums.contiguous()) / count
        if not ctx.sharing.has_images:
            return torch.zeros_like(gradient), None, None, None, None
        through_mean, through_deviation = sums[0].reshape(shape), sums[1].reshape(shape)
        of_values = (gradient - through_mean - normalised * through_deviation) * inverse.reshape(shape)
        return of_values, None, None, None, None
