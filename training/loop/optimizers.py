"""The optimizer of denoising networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flawscope.config import DenoisingSettings
from flawscope.errors import MissingExtra
from flawscope.training.diffusion.diffusers_networks import quiet_bitsandbytes


def build_optimizer(
    settings: DenoisingSettings,
    parameters: Iterable[nn.Parameter],
    *,
    rate: float,
    epsilon: float = 1e-8,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name, with their decay and betas.

    `adamw8bit` keeps both moments of tensors of 4,096 numbers or more in 8 bits, in blocks that are scaled apart
    (arXiv:2110.02861), and those of smaller ones as they are.

    Args:
        settings: Name, decay and betas.
        parameters: What learns.
        rate: Learning rate.
        epsilon: Added to the root of the second moment.
        fused: Whether torch's own optimizers take the step of all tensors at once.

    Raises:
        MissingExtra: If `adamw8bit` is asked for and bitsandbytes is not installed.
    """
    kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    kind = import_bitsandbytes().optim.AdamW8bit if settings.optimizer == "adamw8bit" else kinds[settings.optimizer]
    found: torch.optim.Optimizer = kind(
        parameters,
        lr=rate,
        betas=settings.betas,
        eps=epsilon,
        weight_decay=settings.weight_decay,
        **({"fused": True} if fused and settings.optimizer != "adamw8bit" else {}),
    )
    return found


def import_bitsandbytes() -> Any:
    """Return the module bitsandbytes, which takes seconds to import: only where it is needed.

    Raises:
        MissingExtra: If it is not installed.
    """
    quiet_bitsandbytes()
    try:
        import bitsandbytes
    except ImportError as err:
        raise MissingExtra("the optimizer adamw8bit", "bitsandbytes", "adamw8bit") from err
    return bitsandbytes
