"""Gradients and states of a network over all processes of a training.

Not torch's DistributedDataParallel: a task may use its network without the wrapper, several times in a step, or in
parts, and parameters may go unused; DDP takes none of it without settings for each case. What DDP gains, summing while
the backward pass still runs, is small beside a step of these networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flawscope.training.loop.ranks import Ranks

_BUCKET = 8 << 20
"""Numbers that are summed at once: few messages, and little memory beside the gradients."""


def sum_gradients(parameters: Sequence[nn.Parameter], here: Ranks) -> None:
    """Sum the gradients over all processes, in place. Every rank enters, with the same parameters in the same order.

    A parameter without a gradient on some process counts as zero there; without one on any, it stays without.
    """
    if here.world == 1:
        return
    is_used = here.sum([parameter.grad is not None for parameter in parameters]) > 0
    used = [parameter for parameter, is_one in zip(parameters, is_used, strict=True) if is_one]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
        flat = here.sum_tensor(torch.cat([gradient.reshape(-1) for gradient in bucket]))
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, summed in zip(bucket, parts, strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Yield the tensors in groups of one type and limited size, in order."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        is_other = bucket and (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)
        if is_other or sum(part.numel() for part in bucket) + tensor.numel() > _BUCKET:
            if bucket:
                yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@torch.no_grad()
def share_state(network: nn.Module, here: Ranks) -> None:
    """Give parameters and buffers of a network the values of rank 0. Every rank enters."""
    for tensor in (*network.parameters(), *network.buffers()):
        # A copy, since the collectives want tensors without gaps; states may be views.
        values = tensor.detach().contiguous().clone()
        tensor.copy_(here.broadcast_tensor(values))
