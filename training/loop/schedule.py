"""How many batches a training has, how they are spread over its processes, and the learning rate of each."""

from __future__ import annotations

import math

from flawscope.config import LoopSettings, MethodConfig, find_part
from flawscope.config.setting_parts import tag_of
from flawscope.errors import ArgumentError


def check_processes(config: MethodConfig, takes_processes: bool, processes: int) -> None:
    """Raise ArgumentError unless a method can be trained in so many processes with these settings.

    Args:
        config: Settings of the method.
        takes_processes: Whether it can be at all.
        processes: Processes of the training.
    """
    if processes > 1 and not takes_processes:
        name = tag_of(type(config))
        raise ArgumentError(
            f"processes: expected one process for {name}, got {processes}. Leave out --processes, and start it without "
            "torchrun."
        )
    if (loop := find_part(config, LoopSettings)) is not None:
        check_batch(loop.batch_size, processes)


def check_batch(batch_size: int, processes: int) -> None:
    """Raise ArgumentError unless a batch can be spread evenly over the processes."""
    if batch_size % processes:
        below, above = batch_size // processes * processes, -(-batch_size // processes) * processes
        sizes = f"{above}" if below == 0 else f"{below} or {above}"
        fitting = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
        nearest = max(count for count in fitting if count < processes)
        raise ArgumentError(
            f"batch_size: expected a multiple of {processes}, the number of processes that share a batch, got "
            f"{batch_size}. Set batch_size={sizes}, or start {nearest} process{'' if nearest == 1 else 'es'}."
        )


def batches_in_all(loop: LoopSettings, batches: int) -> int:
    """Return the number of batches of a whole training: those of all epochs, or of the first `max_steps` steps.

    Args:
        loop: Settings.
        batches: Batches of an epoch. A step takes `accumulate` of them, the last step of an epoch the rest.
    """
    of_all_epochs = loop.epochs * batches
    if loop.max_steps is None:
        return of_all_epochs
    epochs, steps = divmod(loop.max_steps, math.ceil(batches / loop.accumulate))
    return min(of_all_epochs, epochs * batches + steps * loop.accumulate)


def learning_rate_share(loop: LoopSettings, batch: int, total: int) -> float:
    """Return the factor of the learning rate for a batch.

    With p the finished share of the batches after the warm-up: 1 for `constant`, 1 - p for `linear`,
    (1 - p)^power for `polynomial`, (1 + cos(π p)) / 2 for `cosine`, and for `cosine_with_restarts` (arXiv:1608.03983)
    the same of the fractional part of `cycles` · p. For `drop` 1, and from p = 4/5 on 0.1, as LafitE has it
    (arXiv:2307.08059). For `drops` 1, from p = 4/7 on 0.1, and from p = 6/7 on 0.01, which are epochs 400 and 600 of
    the 700 of DRAEM (arXiv:2108.07610). The others are the schedules of diffusers, except that the first batch of the
    warm-up has a rate above 0 here, and that `polynomial` ends at 0 here and at 1e-7 there.

    Args:
        loop: Settings.
        batch: Number of the batch, from 0.
        total: Batches in all.
    """
    if batch < loop.warmup_steps:
        return (batch + 1) / loop.warmup_steps
    if loop.schedule == "constant":
        return 1.0
    finished = min(1.0, (batch - loop.warmup_steps) / max(1, total - loop.warmup_steps))
    if loop.schedule in ("drop", "drops"):
        # In whole numbers, so that a batch on the border is not a matter of rounding.
        parts, drops_at = (5, (4,)) if loop.schedule == "drop" else (7, (4, 6))
        done, of = batch - loop.warmup_steps, total - loop.warmup_steps
        return 0.1 ** sum(parts * done >= part * of for part in drops_at)
    if loop.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * finished))
    if loop.schedule == "cosine_with_restarts":
        # At the very end the fractional part is 0 again, which would restart once more.
        return 0.0 if finished == 1.0 else 0.5 * (1.0 + math.cos(math.pi * (loop.cycles * finished % 1.0)))
    return float((1.0 - finished) ** (loop.power if loop.schedule == "polynomial" else 1.0))
