"""The training loop of all trained methods; a task defines the single step.

No random number depends on those drawn before: the order of an epoch comes from (seed, epoch), the noise of a batch
from (seed, batch). So a killed training that resumes from a checkpoint takes the very steps it would have taken.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from flawscope.config import LoopSettings, TrainedConfig, flatten
from flawscope.errors import RunError
from flawscope.files import write_text
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.progress import Progress
from flawscope.ranges import Count, PositiveCount
from flawscope.training.loop.checkpoints import Checkpoint, latest_checkpoint, write_checkpoint
from flawscope.training.loop.image_batches import Items
from flawscope.training.loop.tensorboard import TensorBoardWriter
from flawscope.training.tracking import track_epoch

METRICS, PREVIEWS, CHECKPOINTS = "metrics.jsonl", "previews", "checkpoints"


class Task(Protocol):
    """What the loop trains.

    Attributes:
        network: Has all parameters; checkpoints hold its whole state.
    """

    network: nn.Module

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the network's parameters."""

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch, averaged over it; `network` may be wrapped.

        `images` is a batch of the items: images uint8 [N, H, W, 3], or numbers int64 [N].
        """

    def validate(self) -> dict[str, float]:
        """Return figures of the validation images; the state with the lowest `error` is the best."""

    def preview(self, path: Path) -> None:
        """Write a PNG that shows the progress of the training."""


class _Numbers(msgspec.Struct):
    """Numbers of a checkpoint, with which a training goes on."""

    epoch: PositiveCount
    step: Count
    losses: list[float]
    best_epoch: Count
    best_error: float
    scaler: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        state: State of the network with the least validation error.
        epoch: Epoch after which it was measured, from 1.
        error: Its validation error.
        losses: Mean loss of every epoch.
    """

    state: dict[str, Tensor]
    epoch: int
    error: float
    losses: tuple[float, ...]


def run_loop(
    task: Task,
    images: Items,
    config: TrainedConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress,
) -> Trained:
    """Train a task.

    Args:
        task: The task.
        images: The items of an epoch.
        config: Epochs, batches, precision, schedule and so on.
        folder: Where metrics, previews, checkpoints and TensorBoard events are written.
        resume: Resume from the newest checkpoint in the folder; if there is none, start anew.
        progress: Receives the number of batches so far.

    Raises:
        MissingExtra: If a package that the settings ask for is not installed.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    # `warn_only`: some CUDA kernels, such as the gradient of bilinear upsampling, have no deterministic form.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Accelerate keeps its state for the life of the process; a second training may have another precision or device.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.loop.mixed_precision,
        cpu=config.device == "cpu",
        step_scheduler_with_optimizer=False,  # the loop sets the rates itself, from the number of the batch alone
    )
    loop = _Loop(task, images, config, folder, accelerator)
    with _memory_errors(config), _matrix_products(config.loop):
        return loop.run(resume, progress)


class _Loop:
    def __init__(
        self, task: Task, images: Items, config: TrainedConfig, folder: Path, accelerator: Accelerator
    ) -> None:
        self._task, self._images, self._config, self._folder = task, images, config, folder
        self._settings = config.loop
        self._accelerator = accelerator
        # Before the optimizer is made, as torch asks for.
        task.network.to(accelerator.device)
        self._network, self._optimizer = accelerator.prepare(task.network, task.optimizer())
        # The rates before any schedule, of each group: encoders may learn at a share of the others' rate.
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._batches = math.ceil(len(images) / (config.loop.batch_size * accelerator.num_processes))
        self._total = batches_in_all(config.loop, self._batches)
        self._epochs = math.ceil(self._total / self._batches)
        self._epoch = self._step = 0
        self._losses: list[float] = []
        self._best: dict[str, Tensor] = {}
        self._best_epoch, self._best_error = 0, math.inf
        self._average = (
            {name: value.detach().clone() for name, value in task.network.state_dict().items()}
            if config.loop.ema
            else None
        )
        self._board: TensorBoardWriter | None = None

    def run(self, resume: bool, progress: Progress) -> Trained:
        (self._folder / PREVIEWS).mkdir(parents=True, exist_ok=True)
        if resume and (checkpoint := latest_checkpoint(self._folder / CHECKPOINTS)) is not None:
            self._restore(checkpoint)
        lines = self._trim_metrics()
        with contextlib.ExitStack() as stack:
            if self._settings.tensorboard and self._accelerator.is_main_process:
                previews = [self._preview_path(line["epoch"]) for line in lines]
                self._board = stack.enter_context(contextlib.closing(TensorBoardWriter(self._folder, lines, previews)))
            for line in lines:  # a training that resumes is a run of its own there, and a whole one
                track_epoch(line, self._preview_path(line["epoch"]))
            self._take_epochs(progress)
        return Trained(self._best, self._best_epoch, self._best_error, tuple(self._losses))

    def _take_epochs(self, progress: Progress) -> None:
        progress("training", self._step, self._total)
        while self._epoch < self._epochs and not self._has_settled():
            started = time.perf_counter()
            losses: list[float] = []
            count = min(self._batches, self._total - self._step)
            for number, images in enumerate(self._epoch_batches(count), 1):
                # The last batches of an epoch make a step even if fewer than `accumulate`: no gradients are carried
                # into the next epoch, where a checkpoint would not have them.
                is_step = number % self._settings.accumulate == 0 or number == count
                losses.append(self._take_batch(images, is_step))
                progress("training", self._step, self._total)
            self._epoch += 1
            self._losses.append(float(np.mean(losses)))
            # Validation, best state and previews are of the averaged weights, which are what a run gets.
            with self._averaged():
                metrics = self._task.validate()
                self._keep_best(metrics["error"])
                if self._is_due(self._settings.preview_every):
                    self._task.preview(self._preview_path(self._epoch))
            self._write_metrics(
                {
                    "epoch": self._epoch,
                    "step": self._step,
                    "loss": self._losses[-1],
                    "learning_rate": self._optimizer.param_groups[0]["lr"],
                    **metrics,
                    "best_epoch": self._best_epoch,
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            # After the metrics: a kill in between leaves a line too many, which `_trim_metrics` drops.
            if self._is_due(self._settings.checkpoint_every) and self._accelerator.is_main_process:
                self._checkpoint()

    def _has_settled(self) -> bool:
        # Of numbers that a checkpoint holds: a training that resumes ends at the same epoch.
        patience = self._settings.patience
        return patience is not None and self._epoch > 0 and self._epoch - self._best_epoch >= patience

    def _is_due(self, every: int) -> bool:
        return self._epoch % every == 0 or self._epoch == self._epochs or self._has_settled()

    def _epoch_batches(self, count: int) -> Iterator[Tensor]:
        """Yield the first batches of this process in the order of this epoch."""
        order = np.random.default_rng((self._config.seed, self._epoch)).permutation(len(self._images))
        own_share = order[self._accelerator.process_index :: self._accelerator.num_processes]
        for images in self._images.batches(own_share[: count * self._settings.batch_size], self._settings.batch_size):
            yield torch.from_numpy(images).to(self._accelerator.device)

    def _take_batch(self, images: Tensor, is_step: bool) -> float:
        """Accumulate the gradients of a batch, take the optimizer's step if it is due, and return the loss."""
        accelerator, optimizer, config, loop = self._accelerator, self._optimizer, self._config, self._settings
        seed = int(np.random.SeedSequence((config.seed, self._step, accelerator.process_index)).generate_state(1)[0])
        # Both: tasks draw from the generator, dropout and the like from torch's global one.
        torch.manual_seed(seed)
        generator = torch.Generator(device=images.device).manual_seed(seed)
        share = learning_rate_share(loop, self._step, self._total)
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._network.train()  # for every batch: validation leaves inference mode behind
        with contextlib.nullcontext() if is_step else accelerator.no_sync(self._network):
            with accelerator.autocast():
                loss = self._task.loss(self._network, images, generator)
            # Checked before the backward pass: afterwards NaN would be in the weights, and in the next checkpoint.
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RunError(
                    f"training: expected a finite loss, got {value} in step {self._step + 1}. Lower the learning rate "
                    f"(--set learning_rate={loop.learning_rate / 10:g}), or set mixed_precision=no."
                )
            accelerator.backward(loss / loop.accumulate)
        if is_step:
            if loop.clip_norm > 0:  # before the step, on the sum of all accumulated batches
                accelerator.clip_grad_norm_(self._network.parameters(), loop.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if self._average is not None:
                self._update_average()
        self._step += 1
        return value

    # ---- The averaged state ------------------------------------------------------------------------------------------

    def _update_average(self) -> None:
        assert self._average is not None
        # A shorter average at the start, which would otherwise be dominated by the random weights for long.
        decay = min(self._settings.ema, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            for name, value in self._task.network.state_dict().items():
                average = self._average[name]
                if average.is_floating_point():
                    average.lerp_(value.to(average), 1.0 - decay)
                else:  # counters of batch norm are integers, which have no average
                    average.copy_(value)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Give the network the averaged state, if there is one, for the duration of the context."""
        network = self._task.network
        network.eval()
        if self._average is None:
            yield
            return
        # Clones: `state_dict` returns the live tensors, which the next line overwrites.
        trained = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self._average)
        try:
            yield
        finally:
            network.load_state_dict(trained)

    def _keep_best(self, error: float) -> None:
        if not math.isfinite(error):
            raise RunError(f"training: expected a finite validation error, got {error} after epoch {self._epoch}.")
        if error < self._best_error:  # strictly: of equal errors the first wins
            self._best_error, self._best_epoch = error, self._epoch
            self._best = {name: value.detach().cpu().clone() for name, value in self._task.network.state_dict().items()}

    # ---- What is written ---------------------------------------------------------------------------------------------

    def _preview_path(self, epoch: int) -> Path:
        return self._folder / PREVIEWS / f"epoch_{epoch:04d}.png"

    def _write_metrics(self, line: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            track_epoch(line, self._preview_path(self._epoch))
        if self._board is not None:
            self._board.add(line, self._preview_path(self._epoch))

    def _trim_metrics(self) -> list[dict[str, Any]]:
        """Drop metric lines after the checkpoint: a killed training may have written more lines than checkpoints."""
        path = self._folder / METRICS
        if not path.is_file() or not self._accelerator.is_main_process:
            return []
        texts, lines = [], []
        for text in read_regular(path, RECORD_BYTES).decode(errors="replace").splitlines():
            # A line that was cut off, or that another program wrote.
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                line = json.loads(text)
                if line["epoch"] <= self._epoch:
                    texts.append(text)
                    lines.append(line)
        # Atomically, so that a kill here loses no epoch; the texts as they were, not encoded anew.
        write_text(path, "".join(f"{text}\n" for text in texts))
        return lines

    def _checkpoint(self) -> None:
        state = {
            "network": self._task.network.state_dict(),
            "best": self._best,
            **({} if self._average is None else {"average": self._average}),
        }
        scaler = self._accelerator.scaler
        numbers = {
            "epoch": self._epoch,
            "step": self._step,
            "losses": self._losses,
            "best_epoch": self._best_epoch,
            "best_error": self._best_error,
            "scaler": {} if scaler is None else scaler.state_dict(),
        }
        # No state of a random generator: seeds follow from the numbers above.
        checkpoint = Checkpoint(state, self._optimizer.state_dict(), numbers)
        write_checkpoint(self._folder / CHECKPOINTS, self._epoch, checkpoint, keep=self._settings.checkpoints_kept)

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            self._task.network.load_state_dict(checkpoint.state["network"])
            self._optimizer.load_state_dict(checkpoint.optimizer)
            numbers = msgspec.convert(checkpoint.numbers, _Numbers)
            best = checkpoint.state["best"]
            state = self._task.network.state_dict()
            if best and {name: value.shape for name, value in best.items()} != {n: v.shape for n, v in state.items()}:
                raise ValueError("the best state is of another network")
            if self._average is not None:
                for name, value in checkpoint.state["average"].items():
                    self._average[name].copy_(value)
        except (LookupError, AttributeError, TypeError, RuntimeError, ValueError, msgspec.ValidationError) as err:
            raise RunError(
                f"{self._folder / CHECKPOINTS}: expected a checkpoint of this training, got another. Train without "
                "--resume, or with the settings it was begun with."
            ) from err
        self._epoch, self._step, self._losses = numbers.epoch, numbers.step, numbers.losses
        self._best, self._best_epoch, self._best_error = best, numbers.best_epoch, numbers.best_error
        # Loss scaling of FP16 alone; bf16 and FP32 have no scaler.
        if self._accelerator.scaler is not None and numbers.scaler:
            self._accelerator.scaler.load_state_dict(numbers.scaler)


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


@contextlib.contextmanager
def _matrix_products(loop: LoopSettings) -> Iterator[None]:
    """Set the precision of float32 matrix products (TF32 or full) for the duration of the context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if loop.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _memory_errors(config: TrainedConfig) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        # On the CPU torch raises a plain RuntimeError when its allocator fails.
        is_memory_error = isinstance(err, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(err)
        if not is_memory_error:
            raise
        can_checkpoint = flatten(config).get("gradient_checkpointing") is False
        loop = config.loop
        raise RunError(
            f"training: out of memory with batch_size={loop.batch_size}, resize={list(config.input.resize)}, "
            f"mixed_precision={loop.mixed_precision}. Lower batch_size (accumulate={2 * loop.accumulate} with half "
            "of it takes the same steps), the image size, or set mixed_precision=bf16"
            f"{' or gradient_checkpointing=true' if can_checkpoint else ''}."
        ) from err
