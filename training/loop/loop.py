"""The training loop of all trained methods; a task defines the single step.

No random number depends on those drawn before: the order of an epoch comes from (seed, epoch), the noise of a batch
from (seed, batch). So a killed training that resumes from a checkpoint takes the very steps it would have taken.

In several processes (`ranks`) every batch is spread over them, so that N processes take the steps of one: each has
every N-th image of the batch with the random numbers that it would have in one process, gradients and batch norms are
those of the whole batch. Rank 0 validates, decides and writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
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
from flawscope.training.loop.checkpoints import Checkpoint, latest_checkpoint, share_checkpoint, write_checkpoint
from flawscope.training.loop.draws import batch_generator
from flawscope.training.loop.gradient_sums import share_state, sum_gradients
from flawscope.training.loop.image_batches import Items
from flawscope.training.loop.ranks import on_writer, ranks
from flawscope.training.loop.schedule import batches_in_all, check_batch, learning_rate_share
from flawscope.training.loop.synced_norm import BatchSharing, synced_batch_norms
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
        """Return the loss of a batch, averaged over its images; `network` may be wrapped.

        `images` is a batch of the items: images uint8 [N, H, W, 3], or numbers int64 [N]. What is drawn for each of
        them is drawn by `flawscope.training.loop.draws`: other processes may have the rest of the batch.
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
        processes: Facts about the processes of the training; empty where there was one.
    """

    state: dict[str, Tensor]
    epoch: int
    error: float
    losses: tuple[float, ...]
    processes: dict[str, int] = field(default_factory=dict)


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
        ArgumentError: If the batches cannot be spread evenly over the processes.
        MissingExtra: If a package that the settings ask for is not installed.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    check_batch(config.loop.batch_size, ranks().world)
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


_FIRST: npt.NDArray[np.int64] = np.zeros(1, np.int64)


class _OwnBatch(NamedTuple):
    """A process's part of a batch: its items, their rows in the whole batch, whose size that is, and if they count."""

    images: Tensor
    rows: npt.NDArray[np.int64]
    whole: int
    counts: bool


class _Loop:
    def __init__(
        self, task: Task, images: Items, config: TrainedConfig, folder: Path, accelerator: Accelerator
    ) -> None:
        self._task, self._images, self._config, self._folder = task, images, config, folder
        self._settings = config.loop
        self._accelerator = accelerator
        self._here = ranks()
        self._sharing = BatchSharing(self._here.rank, self._here.world, self._here.sum_tensor)
        # Before the optimizer is made, as torch asks for.
        task.network.to(accelerator.device)
        share_state(task.network, self._here)
        # For evaluation: accelerate would wrap it for several processes; here gradients are summed by the loop.
        self._network = accelerator.prepare_model(task.network, evaluation_mode=True)
        self._optimizer = accelerator.prepare_optimizer(task.optimizer())
        # The rates before any schedule, of each group: encoders may learn at a share of the others' rate.
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._batches = math.ceil(len(images) / config.loop.batch_size)
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
        self._trained_parameters = [value for value in task.network.parameters() if value.requires_grad]
        self._board: TensorBoardWriter | None = None

    def run(self, resume: bool, progress: Progress) -> Trained:
        (self._folder / PREVIEWS).mkdir(parents=True, exist_ok=True)
        if resume:
            found = latest_checkpoint(self._folder / CHECKPOINTS) if self._here.is_writer else None
            if (checkpoint := share_checkpoint(found, self._here)) is not None:
                self._restore(checkpoint)
        lines = self._trim_metrics()
        with contextlib.ExitStack() as stack:
            if self._here.world > 1:
                stack.enter_context(synced_batch_norms(self._task.network, self._sharing))
            if self._settings.tensorboard and self._here.is_writer:
                previews = [self._preview_path(line["epoch"]) for line in lines]
                self._board = stack.enter_context(contextlib.closing(TensorBoardWriter(self._folder, lines, previews)))
            for line in lines:  # a training that resumes is a run of its own there, and a whole one
                track_epoch(line, self._preview_path(line["epoch"]))
            self._take_epochs(progress)
        facts = self._here.facts(self._settings.batch_size)
        return Trained(self._best, self._best_epoch, self._best_error, tuple(self._losses), facts)

    def _take_epochs(self, progress: Progress) -> None:
        progress("training", self._step, self._total)
        while self._epoch < self._epochs and not self._has_settled():
            started = time.perf_counter()
            losses: list[float] = []
            count = min(self._batches, self._total - self._step)
            for number, batch in enumerate(self._epoch_batches(count), 1):
                # The last batches of an epoch make a step even if fewer than `accumulate`: no gradients are carried
                # into the next epoch, where a checkpoint would not have them.
                is_step = number % self._settings.accumulate == 0 or number == count
                losses.append(self._take_batch(batch, is_step))
                progress("training", self._step, self._total)
            self._epoch += 1
            self._losses.append(float(np.mean(self._here.sum(losses))))
            # Validation, best state and previews are of the averaged weights, which are what a run gets.
            with self._averaged():
                # By one process, and each image once: what it finds decides on all of them when to end.
                metrics = on_writer(self._validate)
                self._keep_best(metrics["error"])
                if self._here.is_writer and self._is_due(self._settings.preview_every):
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
            if self._is_due(self._settings.checkpoint_every) and self._here.is_writer:
                self._checkpoint()

    def _has_settled(self) -> bool:
        # Of numbers that a checkpoint holds: a training that resumes ends at the same epoch.
        patience = self._settings.patience
        return patience is not None and self._epoch > 0 and self._epoch - self._best_epoch >= patience

    def _is_due(self, every: int) -> bool:
        return self._epoch % every == 0 or self._epoch == self._epochs or self._has_settled()

    def _epoch_batches(self, count: int) -> Iterator[_OwnBatch]:
        """Yield this process's part of the first batches, in the order of this epoch."""
        order = np.random.default_rng((self._config.seed, self._epoch)).permutation(len(self._images))
        size = self._settings.batch_size
        wholes = [order[start : start + size] for start in range(0, len(order), size)][:count]
        # With fewer images than processes in the last batch, those that would have none take one that does not count.
        shares = [self._here.share(len(whole)) if self._here.rank < len(whole) else _FIRST for whole in wholes]
        own = np.concatenate([whole[rows] for whole, rows in zip(wholes, shares, strict=True)])
        batches = self._images.batches(own, size // self._here.world)
        for images, whole, rows in zip(batches, wholes, shares, strict=True):
            on_device = torch.from_numpy(images).to(self._accelerator.device)
            yield _OwnBatch(on_device, rows, len(whole), self._here.rank < len(whole))

    def _take_batch(self, batch: _OwnBatch, is_step: bool) -> float:
        """Accumulate the gradients of a batch, take the optimizer's step if it is due, and return this part's loss."""
        accelerator, optimizer, config, loop = self._accelerator, self._optimizer, self._config, self._settings
        seed, own_seed = (
            int(np.random.SeedSequence((config.seed, self._step, rank)).generate_state(1)[0])
            for rank in (0, self._here.rank)
        )
        # Both: tasks draw from the generator, for the whole batch; dropout and the like from torch's global one.
        torch.manual_seed(own_seed)
        generator = batch_generator(batch.images.device, seed, batch.whole, batch.rows)
        self._sharing.has_images = batch.counts
        share = learning_rate_share(loop, self._step, self._total)
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._network.train()  # for every batch: validation leaves inference mode behind
        with accelerator.autocast():
            loss = self._task.loss(self._network, batch.images, generator)
        # Checked before the backward pass: afterwards NaN would be in the weights, and in the next checkpoint.
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RunError(
                f"training: expected a finite loss, got {value} in step {self._step + 1}. Lower the learning rate "
                f"(--set learning_rate={loop.learning_rate / 10:g}), or set mixed_precision=no."
            )
        # The mean over the whole batch is the sum over the processes of their means, each with its share of images.
        share_of_batch = len(batch.rows) / batch.whole if batch.counts else 0.0
        accelerator.backward(loss * share_of_batch / loop.accumulate)
        if is_step:
            sum_gradients(self._trained_parameters, self._here)
            if loop.clip_norm > 0:  # before the step, on the sum of all accumulated batches
                accelerator.clip_grad_norm_(self._network.parameters(), loop.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if self._average is not None:
                self._update_average()
        self._step += 1
        return value * share_of_batch

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

    def _validate(self) -> dict[str, float]:
        metrics = self._task.validate()
        if not math.isfinite(error := metrics["error"]):
            raise RunError(f"training: expected a finite validation error, got {error} after epoch {self._epoch}.")
        return metrics

    def _keep_best(self, error: float) -> None:
        if error < self._best_error:  # strictly: of equal errors the first wins
            self._best_error, self._best_epoch = error, self._epoch
            self._best = {name: value.detach().cpu().clone() for name, value in self._task.network.state_dict().items()}

    # ---- What is written ---------------------------------------------------------------------------------------------

    def _preview_path(self, epoch: int) -> Path:
        return self._folder / PREVIEWS / f"epoch_{epoch:04d}.png"

    def _write_metrics(self, line: dict[str, Any]) -> None:
        if self._here.is_writer:
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            track_epoch(line, self._preview_path(self._epoch))
        if self._board is not None:
            self._board.add(line, self._preview_path(self._epoch))

    def _trim_metrics(self) -> list[dict[str, Any]]:
        """Drop metric lines after the checkpoint: a killed training may have written more lines than checkpoints."""
        path = self._folder / METRICS
        if not self._here.is_writer or not path.is_file():
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
