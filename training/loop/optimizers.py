"""Optimizers of denoising networks: AdamW, Adam, and AdamW with 8-bit moments."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flawscope.config import DenoisingSettings
from flawscope.errors import MissingExtra


def build_optimizer(
    settings: DenoisingSettings,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    *,
    rate: float,
    epsilon: float = 1e-8,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name, with their weight decay and betas.

    `adamw8bit` keeps both moments of tensors with 4,096 elements or more in 8 bits, quantized block by block
    (arXiv:2110.02861), and those of smaller tensors in 32 bits.

    Args:
        settings: Name, weight decay and betas.
        parameters: The trained parameters, or groups of them, which may have a rate of their own (`lr`).
        rate: Learning rate.
        epsilon: Added to the root of the second moment.
        fused: Use the fused step of torch's own optimizers.

    Raises:
        MissingExtra: If `adamw8bit` is asked for and bitsandbytes is not installed.
    """
    kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    kind = import_bitsandbytes().optim.AdamW8bit if settings.optimizer == "adamw8bit" else kinds[settings.optimizer]
    optimizer: torch.optim.Optimizer = kind(
        parameters,
        lr=rate,
        betas=settings.betas,
        eps=epsilon,
        weight_decay=settings.weight_decay,
        # Left out, not False: with `fused=False` torch may no longer choose its faster foreach step by itself.
        **({"fused": True} if fused and settings.optimizer != "adamw8bit" else {}),
    )
    return optimizer


def import_bitsandbytes() -> Any:
    """Return the module bitsandbytes; it takes seconds to import, so it is imported only when needed.

    Raises:
        MissingExtra: If it is not installed.
    """
    quiet_bitsandbytes()
    try:
        import bitsandbytes
    except ImportError as err:
        raise MissingExtra("the optimizer adamw8bit", "bitsandbytes", "adamw8bit") from err
    return bitsandbytes


def quiet_bitsandbytes() -> None:
    """Silence the import of bitsandbytes: it warns about kernels for 4-bit weights, which nothing here uses."""
    # Also before diffusers, which imports it too if it is installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
