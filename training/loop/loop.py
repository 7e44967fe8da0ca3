"""The training loop of all trained methods; a task defines the single step.

Nothing depends on what a process has drawn before: the order of an epoch comes from (seed, epoch), the noise of a step
from (seed, step). So a run that was killed and goes on from a checkpoint takes the steps that it would have taken.
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

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from flawscope.config import LoopSettings, TrainedConfig, flatten
from flawscope.errors import RunError
from flawscope.files import write_text
from flawscope.progress import Progress
from flawscope.training.loop.checkpoints import Checkpoint, latest_checkpoint, write_checkpoint
from flawscope.training.loop.image_batches import Items
from flawscope.training.loop.tensorboard import TensorBoardWriter

METRICS, PREVIEWS, CHECKPOINTS = "metrics.jsonl", "previews", "checkpoints"


class Task(Protocol):
    """What is trained.

    Attributes:
        network: What has the parameters; checkpoints hold its whole state.
    """

    network: nn.Module

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the network's parameters."""

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch, averaged over it; `network` may be wrapped.

        `images` is what the items give: images uint8 [N, H, W, 3], or numbers int64 [N].
        """

    def validate(self) -> dict[str, float]:
        """Return figures on held-back normal images; `error` decides which state is the best, the lower the better."""

    def preview(self, path: Path) -> None:
        """Write a PNG that shows how far the training is."""


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Attributes:
        state: State of the network with the least validation error.
        epoch: After which epoch that was, from 1.
        error: That error.
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
        task: What is trained.
        images: What an epoch consists of.
        config: Epochs, batches, precision, schedule and the rest.
        folder: Where metrics, previews, checkpoints and what TensorBoard shows are written.
        resume: Go on from the newest checkpoint in the folder; without one there the training begins.
        progress: Told the steps done.

    Raises:
        MissingExtra: If a package that the settings ask for is not installed.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    AcceleratorState._reset_state()  # one process may train twice, in another precision
    accelerator = Accelerator(
        mixed_precision=config.loop.mixed_precision,
        cpu=config.device == "cpu",
        step_scheduler_with_optimizer=False,
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
        task.network.to(accelerator.device)
        self._network, self._optimizer = accelerator.prepare(task.network, task.optimizer())
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
        if resume and (found := latest_checkpoint(self._folder / CHECKPOINTS)) is not None:
            self._restore(found)
        lines = self._trim_metrics()
        with contextlib.ExitStack() as stack:
            if self._settings.tensorboard and self._accelerator.is_main_process:
                previews = [self._preview_path(line["epoch"]) for line in lines]
                self._board = stack.enter_context(contextlib.closing(TensorBoardWriter(self._folder, lines, previews)))
            self._take_epochs(progress)
        return Trained(self._best, self._best_epoch, self._best_error, tuple(self._losses))

    def _take_epochs(self, progress: Progress) -> None:
        progress("training", self._step, self._total)
        while self._epoch < self._epochs:
            started = time.perf_counter()
            losses: list[float] = []
            count = min(self._batches, self._total - self._step)
            for number, images in enumerate(self._epoch_batches(count), 1):
                # The last batches of an epoch are one step even if they are fewer: nothing is carried over, so a
                # checkpoint between the two has everything.
                is_step = number % self._settings.accumulate == 0 or number == count
                losses.append(self._take_batch(images, is_step))
                progress("training", self._step, self._total)
            self._epoch += 1
            self._losses.append(float(np.mean(losses)))
            with self._averaged():
                metrics = self._task.validate()
                self._keep_best(metrics["error"])
                if self._is_due(self._settings.preview_every):
                    self._task.preview(self._preview_path(self._epoch))
            self._note(
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
            if self._is_due(self._settings.checkpoint_every) and self._accelerator.is_main_process:
                self._checkpoint()

    def _is_due(self, every: int) -> bool:
        return self._epoch % every == 0 or self._epoch == self._epochs

    def _epoch_batches(self, count: int) -> Iterator[Tensor]:
        """Yield the first batches of this process in the order of this epoch."""
        order = np.random.default_rng((self._config.seed, self._epoch)).permutation(len(self._images))
        mine = order[self._accelerator.process_index :: self._accelerator.num_processes]
        for images in self._images.batches(mine[: count * self._settings.batch_size], self._settings.batch_size):
            yield torch.from_numpy(images).to(self._accelerator.device)

    def _take_batch(self, images: Tensor, is_step: bool) -> float:
        """Add the gradients of a batch, and take the step of the optimizer if it is due; return the loss."""
        accelerator, optimizer, config, loop = self._accelerator, self._optimizer, self._config, self._settings
        seed = int(np.random.SeedSequence((config.seed, self._step, accelerator.process_index)).generate_state(1)[0])
        torch.manual_seed(seed)
        generator = torch.Generator(device=images.device).manual_seed(seed)
        share = learning_rate_share(loop, self._step, self._total)
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._network.train()
        with contextlib.nullcontext() if is_step else accelerator.no_sync(self._network):
            with accelerator.autocast():
                loss = self._task.loss(self._network, images, generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RunError(
                    f"training: expected a finite loss, got {value} in step {self._step + 1}. Lower the learning rate "
                    f"(--set learning_rate={loop.learning_rate / 10:g}), or set mixed_precision=no."
                )
            accelerator.backward(loss / loop.accumulate)
        if is_step:
            if loop.clip_norm > 0:
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
        # Early on an average over few steps: it would otherwise be of the random start for long.
        decay = min(self._settings.ema, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            for name, value in self._task.network.state_dict().items():
                kept = self._average[name]
                if kept.is_floating_point():
                    kept.lerp_(value.to(kept), 1.0 - decay)
                else:
                    kept.copy_(value)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the network have the averaged state for a while, where there is one."""
        network = self._task.network
        network.eval()
        if self._average is None:
            yield
            return
        own = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self._average)
        try:
            yield
        finally:
            network.load_state_dict(own)

    def _keep_best(self, error: float) -> None:
        if not math.isfinite(error):
            raise RunError(f"training: expected a finite validation error, got {error} after epoch {self._epoch}.")
        if error < self._best_error:
            self._best_error, self._best_epoch = error, self._epoch
            self._best = {name: value.detach().cpu().clone() for name, value in self._task.network.state_dict().items()}

    # ---- What is written ---------------------------------------------------------------------------------------------

    def _preview_path(self, epoch: int) -> Path:
        return self._folder / PREVIEWS / f"epoch_{epoch:04d}.png"

    def _note(self, line: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._board is not None:
            self._board.add(line, self._preview_path(self._epoch))

    def _trim_metrics(self) -> list[dict[str, Any]]:
        """Drop metric lines after the checkpoint: a killed training may have written more lines than checkpoints."""
        path = self._folder / METRICS
        if not path.is_file() or not self._accelerator.is_main_process:
            return []
        kept, lines = [], []
        for text in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut off
                line = json.loads(text)
                if line["epoch"] <= self._epoch:
                    kept.append(text)
                    lines.append(line)
        write_text(path, "".join(f"{text}\n" for text in kept))  # whole or not at all: a kill here loses no epoch
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
        checkpoint = Checkpoint(state, self._optimizer.state_dict(), numbers)
        write_checkpoint(self._folder / CHECKPOINTS, self._epoch, checkpoint, keep=self._settings.checkpoints_kept)

    def _restore(self, found: Checkpoint) -> None:
        try:
            self._task.network.load_state_dict(found.state["network"])
            self._optimizer.load_state_dict(found.optimizer)
        except (KeyError, RuntimeError, ValueError) as err:
            raise RunError(
                f"{self._folder / CHECKPOINTS}: expected a checkpoint of this training, got another. Train without "
                "--resume, or with the settings it was begun with."
            ) from err
        numbers = found.numbers
        self._epoch, self._step, self._losses = numbers["epoch"], numbers["step"], list(numbers["losses"])
        self._best, self._best_epoch = found.state["best"], numbers["best_epoch"]
        self._best_error = numbers["best_error"]
        if self._average is not None:
            for name, value in found.state["average"].items():
                self._average[name].copy_(value)
        if self._accelerator.scaler is not None and numbers["scaler"]:
            self._accelerator.scaler.load_state_dict(numbers["scaler"])


def batches_in_all(loop: LoopSettings, batches: int) -> int:
    """Return how many batches a training takes: those of all epochs, or of the `max_steps` first steps.

    Args:
        loop: Settings.
        batches: Those of an epoch. A step takes `accumulate` of them, the last of an epoch what is left.
    """
    whole = loop.epochs * batches
    if loop.max_steps is None:
        return whole
    epochs, steps = divmod(loop.max_steps, math.ceil(batches / loop.accumulate))
    return min(whole, epochs * batches + steps * loop.accumulate)


def learning_rate_share(loop: LoopSettings, batch: int, total: int) -> float:
    """Return what the learning rate of a batch is multiplied with.

    With p the part of the batches after the warm-up that are done: 1 for `constant`, 1 - p for `linear`,
    (1 - p)^power for `polynomial`, (1 + cos(π p)) / 2 for `cosine`, and for `cosine_with_restarts` (arXiv:1608.03983)
    the same of what `cycles` · p has behind the point. They are those of diffusers, but for the warm-up, whose first
    batch has a rate above 0 here, and the end of `polynomial`, which is 0 here and 1e-7 there.

    Args:
        loop: Settings.
        batch: Number of the batch, from 0.
        total: Batches in all.
    """
    if batch < loop.warmup_steps:
        return (batch + 1) / loop.warmup_steps
    if loop.schedule == "constant":
        return 1.0
    done = min(1.0, (batch - loop.warmup_steps) / max(1, total - loop.warmup_steps))
    if loop.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if loop.schedule == "cosine_with_restarts":
        return 0.0 if done == 1.0 else 0.5 * (1.0 + math.cos(math.pi * (loop.cycles * done % 1.0)))
    return float((1.0 - done) ** (loop.power if loop.schedule == "polynomial" else 1.0))


@contextlib.contextmanager
def _matrix_products(loop: LoopSettings) -> Iterator[None]:
    """Let matrix products of 32 bits be as exact as the settings say, until the end of the training."""
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
        # On the CPU torch raises a plain RuntimeError where its allocator got nothing.
        short = isinstance(err, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(err)
        if not short:
            raise
        can_checkpoint = flatten(config).get("gradient_checkpointing") is False
        loop = config.loop
        raise RunError(
            f"training: out of memory with batch_size={loop.batch_size}, resize={list(config.input.resize)}, "
            f"mixed_precision={loop.mixed_precision}. Lower batch_size (accumulate={2 * loop.accumulate} with half "
            "of it takes the same steps), the image size, or set mixed_precision=bf16"
            f"{' or gradient_checkpointing=true' if can_checkpoint else ''}."
        ) from err
