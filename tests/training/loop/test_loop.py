"""The loop: steps, schedules, averages, checkpoints, and what it says when something goes wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from hypothesis import given
from hypothesis import strategies as st
from interrupted import Killed, killing_progress
from odd_bytes import assert_read_or_refused, odd_bytes
from odd_files import ODD, refuse_listing
from torch import Tensor, nn

from flawscope.config import BaseConfig, StfpmConfig, build_config, change_settings, from_flat
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.progress import no_progress
from flawscope.training.loop.checkpoints import Checkpoint, latest_checkpoint, write_checkpoint
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import Trained, run_loop
from flawscope.training.loop.schedule import batches_in_all, learning_rate_share

SIZE = 16


class Mean:
    """Learns the mean colour of the images: a task whose every step can be computed by hand."""

    def __init__(self, rate: float = 0.1, adam: bool = False) -> None:
        self.network: nn.Module = nn.Linear(1, 3, bias=False)
        nn.init.zeros_(self.network.weight)  # type: ignore[arg-type]
        self.rate, self.adam = rate, adam
        self.validated: list[list[float]] = []
        self.noise: list[float] = []
        self.seen: list[Tensor] = []
        self.fail: BaseException | None = None
        self.errors: list[float] | None = None

    def optimizer(self) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.adam else torch.optim.SGD
        return kind(self.network.parameters(), lr=self.rate)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.fail is not None:
            raise self.fail
        self.seen.append(images)
        self.noise.append(float(torch.rand((), generator=generator)))
        target = images.float().mean(dim=(1, 2)) / 255
        output = network(torch.ones((len(images), 1)))
        return 0.5 * (output - target).square().sum(dim=1).mean()

    def weights(self) -> list[float]:
        return [float(value) for value in next(self.network.parameters()).detach().flatten()]

    def validate(self) -> dict[str, float]:
        self.validated.append(self.weights())
        error = self.errors[len(self.validated) - 1] if self.errors is not None else 1.0 / len(self.validated)
        return {"error": error}

    def preview(self, path: Path) -> None:
        path.write_bytes(b"preview")


@pytest.fixture(scope="module")
def part_images(tmp_path_factory: pytest.TempPathFactory) -> ImageReader:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for index in range(8):
        paths.append(folder / f"{index}.png")
        cv2.imwrite(str(paths[-1]), np.full((SIZE, SIZE, 3), 20 * index + 10, np.uint8))
    return ImageReader(paths, config().preprocessing, 1, 100)


def config(**changes: object) -> StfpmConfig:
    plain = from_flat(
        StfpmConfig, {"resize": (SIZE, SIZE), "epochs": 3, "batch_size": 4, "learning_rate": 0.1, "preview_every": 2}
    )
    return change_settings(plain, changes)


def train(task: Mean, part_images: ImageReader, folder: Path, resume: bool = False, **changes: object) -> Trained:
    return run_loop(task, part_images, config(**changes), folder, resume=resume, progress=no_progress)


def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own(part_images: ImageReader, tmp_path: Path) -> None:
    task = Mean()
    result = train(task, part_images, tmp_path)
    levels = [int(image[0, 0, 0]) for batch in task.seen for image in batch]
    epochs = [levels[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(epoch) == [20 * index + 10 for index in range(8)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(set(task.noise)) == len(task.noise) == 6
    assert len(result.losses) == 3


def test_a_step_is_that_of_the_optimizer(part_images: ImageReader, tmp_path: Path) -> None:
    task = Mean(rate=0.5)
    train(task, part_images, tmp_path, epochs=1)
    weight = 0.0
    for batch in task.seen:
        target = float(batch.float().mean()) / 255
        weight -= 0.5 * (weight - target)
    assert task.weights() == pytest.approx([weight] * 3, rel=1e-5)


def test_summed_batches_take_the_step_of_one_that_is_as_large(part_images: ImageReader, tmp_path: Path) -> None:
    whole, parts = Mean(), Mean()
    train(whole, part_images, tmp_path / "whole", epochs=2, batch_size=8)
    train(parts, part_images, tmp_path / "parts", epochs=2, batch_size=4, accumulate=2)
    assert parts.weights() == pytest.approx(whole.weights(), rel=1e-5)


def test_what_is_left_of_an_epoch_is_a_step_of_its_own(part_images: ImageReader, tmp_path: Path) -> None:
    task = Mean(rate=0.5)
    train(task, part_images, tmp_path, epochs=1, batch_size=3, accumulate=2)
    first, second, third = (float(batch.float().mean()) / 255 for batch in task.seen)
    weight = 0.5 * (first + second) / 2
    weight -= 0.5 * (weight - third) / 2  # half of the gradients that a whole step has
    assert task.weights() == pytest.approx([weight] * 3, rel=1e-5)


def test_gradients_are_clipped(part_images: ImageReader, tmp_path: Path) -> None:
    task = Mean(rate=1.0)
    train(task, part_images, tmp_path, epochs=1, batch_size=8, clip_norm=1e-3)
    assert float(np.linalg.norm(task.weights())) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_is_validated_and_kept_and_the_parameters_go_on(part_images: ImageReader, tmp_path: Path) -> None:
    plain, averaged = Mean(), Mean()
    without = train(plain, part_images, tmp_path / "plain", epochs=2)
    with_average = train(averaged, part_images, tmp_path / "averaged", epochs=2, ema=0.9)
    assert averaged.weights() == plain.weights()  # what is trained is the same
    final, weight, average = with_average.state["weight"].flatten().tolist(), 0.0, 0.0
    for step, batch in enumerate(averaged.seen):
        weight -= 0.1 * (weight - float(batch.float().mean()) / 255)
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert final == pytest.approx([average] * 3, rel=1e-4)
    assert averaged.validated[-1] == pytest.approx(final, rel=1e-6)
    assert without.state["weight"].flatten().tolist() == plain.weights()


def test_the_best_epoch_is_kept_not_the_last(part_images: ImageReader, tmp_path: Path) -> None:
    task = Mean()
    task.errors = [0.5, 0.2, 0.4]
    result = train(task, part_images, tmp_path)
    assert (result.epoch, result.error) == (2, 0.2)
    assert result.state["weight"].flatten().tolist() == task.validated[1] != task.weights()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["best_epoch"] for line in lines] == [1, 2, 2]
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["epoch_0002.png", "epoch_0003.png"]


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 7), (None, 8)])
def test_a_training_ends_early_after_epochs_without_a_lower_error(
    part_images: ImageReader, tmp_path: Path, patience: int | None, epochs: int
) -> None:
    task = Mean()
    task.errors = [0.5, 0.2, 0.4, 0.1 if patience == 3 else 0.3, 0.3, 0.3, 0.3, 0.05]
    result = train(task, part_images, tmp_path, epochs=8, patience=patience, preview_every=100)
    assert len(result.losses) == epochs
    assert result.error == min(task.errors[:epochs])
    # The last epoch is always shown and stored, though it was not known to be the last.
    assert (tmp_path / "previews" / f"epoch_{epochs:04d}.png").is_file()
    # A training that is resumed after its end takes no further epoch.
    again = Mean()
    resumed = train(again, part_images, tmp_path, resume=True, epochs=8, patience=patience, preview_every=100)
    assert again.seen == []
    assert resumed.epoch == result.epoch


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 50, 1.0),
        ({"warmup_steps": 10}, 0, 0.1),
        ({"warmup_steps": 10}, 9, 1.0),
        ({"schedule": "cosine"}, 0, 1.0),
        ({"schedule": "cosine"}, 50, 0.5),
        ({"schedule": "cosine"}, 100, 0.0),
        ({"schedule": "cosine", "warmup_steps": 20}, 60, 0.5),
    ],
)
def test_rates_have_known_shares(changes: dict[str, object], step: int, expected: float) -> None:
    assert learning_rate_share(config(**changes).loop, step, 100) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("schedule", "changes", "named"),
    [
        ("linear", {}, {}),
        ("cosine", {}, {}),
        ("cosine_with_restarts", {"cycles": 3}, {"num_cycles": 3}),
        ("cosine_with_restarts", {}, {}),
        ("polynomial", {"power": 2.0}, {"power": 2.0}),
        ("polynomial", {}, {}),
    ],
)
def test_schedules_are_those_of_diffusers(
    schedule: str, changes: dict[str, Any], named: dict[str, Any], warmup: int
) -> None:
    total, rate = 40, 0.25
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total, **named)
    settings = config(schedule=schedule, warmup_steps=warmup, **changes)
    for batch in range(total + 1):
        # The first batch of our warm-up has the rate of their second: theirs would learn nothing.
        shifted = batch + 1 if batch < warmup else batch
        expected = reference.lr_lambdas[0](shifted)  # type: ignore[attr-defined]
        # Theirs ends at a rate of 1e-7, ours at 0.
        limit = 1e-7 / rate if schedule == "polynomial" else 1e-12
        assert learning_rate_share(settings.loop, batch, total) == pytest.approx(expected, abs=limit)


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("warmup", [0, 7])
def test_the_rate_drops_as_in_draem_after_epochs_400_and_600_of_700(batches: int, warmup: int) -> None:
    settings = config(schedule="drops", warmup_steps=warmup).loop
    total = 700 * batches + warmup
    shares = [learning_rate_share(settings, batch, total) for batch in range(warmup, total)]
    expected = [1.0] * 400 * batches + [0.1] * 200 * batches + [0.01] * 100 * batches
    assert shares == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("warmup", [0, 7])
def test_the_rate_drops_as_in_lafite_after_epoch_800_of_1000(batches: int, warmup: int) -> None:
    settings = config(schedule="drop", warmup_steps=warmup).loop
    total = 1000 * batches + warmup
    shares = [learning_rate_share(settings, batch, total) for batch in range(warmup, total)]
    assert shares == pytest.approx([1.0] * 800 * batches + [0.1] * 200 * batches, rel=1e-12)


def naive_batches(settings: StfpmConfig, batches: int) -> int:
    """Count batches one by one, as they are taken."""
    count = steps = 0
    for _ in range(settings.loop.epochs):
        for number in range(1, batches + 1):
            count += 1
            steps += number % settings.loop.accumulate == 0 or number == batches
            if steps == settings.loop.max_steps:
                return count
    return count


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 5), st.integers(1, 60))
def test_steps_that_end_a_training_are_those_of_the_optimizer(
    batches: int, accumulate: int, epochs: int, steps: int
) -> None:
    settings = config(epochs=epochs, accumulate=accumulate, max_steps=steps)
    assert batches_in_all(settings.loop, batches) == naive_batches(settings, batches)
    assert batches_in_all(config(epochs=epochs, accumulate=accumulate).loop, batches) == epochs * batches


def test_a_training_ends_in_the_middle_of_an_epoch(part_images: ImageReader, tmp_path: Path) -> None:
    whole, cut = Mean(), Mean()
    train(whole, part_images, tmp_path / "whole", epochs=2, batch_size=2)
    progressed: list[tuple[int, int]] = []
    settings = config(epochs=2, batch_size=2, max_steps=5, preview_every=9)
    result = run_loop(
        cut,
        part_images,
        settings,
        tmp_path / "cut",
        progress=lambda stage, count, total: progressed.append((count, total)),
    )
    assert progressed == [(count, 5) for count in range(6)]
    assert len(result.losses) == 2
    assert len(cut.seen) == 5
    assert all(torch.equal(first, second) for first, second in zip(cut.seen, whole.seen, strict=False))
    assert cut.noise == whole.noise[:5]
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4), (2, 5)]
    assert (tmp_path / "cut" / "previews" / "epoch_0002.png").is_file()  # it was the last epoch


def test_the_rate_falls_to_where_the_steps_end(part_images: ImageReader, tmp_path: Path) -> None:
    train(Mean(), part_images, tmp_path, epochs=9, batch_size=4, max_steps=4, schedule="linear")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.1 * 3 / 4, 0.1 * 1 / 4])


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_matrix_products_are_as_exact_as_asked_and_then_as_before(
    part_images: ImageReader, tmp_path: Path, tf32: bool, precision: str
) -> None:
    class Seeing(Mean):
        def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
            precisions.add(torch.get_float32_matmul_precision())
            return super().loss(network, images, generator)

    precisions: set[str] = set()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        train(Seeing(), part_images, tmp_path, epochs=1, tf32=tf32)
        after = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
    assert precisions == {precision}
    assert after == "medium"


def test_as_many_checkpoints_are_kept_as_asked(part_images: ImageReader, tmp_path: Path) -> None:
    train(Mean(), part_images, tmp_path, epochs=4, checkpoints_kept=3)
    assert sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("cycles", 0), ("power", 0.0), ("max_steps", 0), ("checkpoints_kept", 0), ("schedule", "sawtooth")],
)
def test_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{key}: expected"):
        build_config("stfpm", {"backbone": "resnet18", key: value})


# --- interrupted


@pytest.mark.parametrize("stop_at", [2, 3, 5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "schedule": "cosine", "warmup_steps": 2, "batch_size": 3, "accumulate": 2},
        {"schedule": "cosine_with_restarts", "cycles": 2, "batch_size": 3, "accumulate": 2, "max_steps": 5},
    ],
    ids=["plain", "all", "steps"],
)
def test_going_on_ends_as_if_nothing_had_happened(
    part_images: ImageReader, tmp_path: Path, stop_at: int, changes: dict[str, object]
) -> None:
    whole = Mean(adam=True)
    expected = train(whole, part_images, tmp_path / "whole", epochs=4, **changes)

    folder, settings = tmp_path / "parts", config(epochs=4, **changes)
    with pytest.raises(Killed):
        run_loop(Mean(adam=True), part_images, settings, folder, progress=killing_progress(stop_at))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lo')  # a line that a kill cut off
    again = Mean(adam=True)
    again.validated = [[]] * len(list((folder / "checkpoints").glob("epoch_*")))  # its errors count the epochs
    resumed = run_loop(again, part_images, settings, folder, resume=True, progress=no_progress)
    assert again.weights() == whole.weights()
    assert (resumed.losses, resumed.epoch, resumed.error) == (expected.losses, expected.epoch, expected.error)
    assert torch.equal(resumed.state["weight"], expected.state["weight"])
    lines = [
        [{**json.loads(line), "seconds": 0} for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]
    assert len(list((folder / "checkpoints").iterdir())) == 2  # older ones go


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    state = {"network": {"a": tied, "b": tied.view(2, 3)}, "best": {}}
    optimizer = {
        "state": {
            0: {"step": torch.tensor(3.0), "flag": True},
            1: {"moment": torch.ones(2), "inner": {"a": torch.zeros(3), "count": 7}},
        },
        "param_groups": [{"lr": 0.1, "betas": [0.9, 0.999], "params": [0, 1]}],
    }
    for epoch in (1, 2, 10):
        write_checkpoint(tmp_path, epoch, Checkpoint(state, optimizer, {"epoch": epoch}), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_000002", "epoch_000010"]
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.numbers == {"epoch": 10}
    assert torch.equal(checkpoint.state["network"]["b"], tied.view(2, 3))
    assert checkpoint.state["best"] == {}
    assert checkpoint.optimizer["state"][0]["flag"] is True
    assert torch.equal(checkpoint.optimizer["state"][1]["moment"], torch.ones(2))
    assert checkpoint.optimizer["state"][1]["inner"]["count"] == 7
    assert torch.equal(checkpoint.optimizer["state"][1]["inner"]["a"], torch.zeros(3))
    assert checkpoint.optimizer["param_groups"] == optimizer["param_groups"]
    assert latest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, 1, Checkpoint({"network": {}}, {"state": {}, "param_groups": []}, {}), keep=1)
    (tmp_path / "epoch_000001" / name).write_bytes(b"{")
    with pytest.raises(RunError, match=r"epoch_000001: expected a checkpoint, got .*Remove it"):
        latest_checkpoint(tmp_path)


@given(data=st.data())
def test_the_numbers_of_a_checkpoint_are_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "odd_checkpoint"
    if not folder.exists():
        tensors = {"exp": torch.ones(1), "count": 1}
        optimizer = {"state": {0: tensors}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        write_checkpoint(folder, 1, Checkpoint({"network": {"a": torch.zeros(2)}}, optimizer, {"epoch": 1}), keep=1)
        (folder / "epoch_000001" / "whole.json").write_bytes((folder / "epoch_000001" / "state.json").read_bytes())
    whole = (folder / "epoch_000001" / "whole.json").read_bytes()
    (folder / "epoch_000001" / "state.json").write_bytes(data.draw(odd_bytes(whole)))
    assert_read_or_refused(lambda: latest_checkpoint(folder))


def test_parameters_of_a_checkpoint_cannot_be_numbered_so_that_it_takes_minutes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, Checkpoint({"network": {}}, {"state": {}, "param_groups": []}, {}), keep=1)
    values = {str(number * (2**61 - 1)): {} for number in range(20_000)}
    stored = {"numbers": {}, "optimizer": {"groups": [], "values": values}}
    (tmp_path / "epoch_000001" / "state.json").write_text(json.dumps(stored))
    with pytest.raises(RunError, match="expected a checkpoint, got the parameter 2305843009213693951"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((("epoch",), value) for value in (0, -1, "1", None, 1.5, 1 << 60)),
        *((("losses",), value) for value in (None, 1, ["x"], {"a": 1})),
        *((("best_error",), value) for value in (None, "x", [])),
        *((("scaler",), value) for value in (None, 1)),
        (("best_epoch",), -1),
    ],
)
def test_a_checkpoint_with_other_numbers_is_refused(
    part_images: ImageReader, tmp_path: Path, place: tuple[str, ...], value: object
) -> None:
    train(Mean(), part_images, tmp_path, epochs=1)
    (path,) = (tmp_path / "checkpoints").glob("*/state.json")
    stored = json.loads(path.read_text())
    stored["numbers"][place[0]] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(RunError, match="expected a checkpoint of this training, got another"):
        train(Mean(), part_images, tmp_path, epochs=2, resume=True)


@pytest.mark.parametrize("line", ["{", "[]", "1", "{}", '{"epoch": "x"}', '{"epoch": null}', "[" * 100_000, "\xff"])
def test_a_strange_line_of_metrics_is_dropped(part_images: ImageReader, tmp_path: Path, line: str) -> None:
    train(Mean(), part_images, tmp_path, epochs=1)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    train(Mean(), part_images, tmp_path, epochs=2, resume=True)
    assert [json.loads(text)["epoch"] for text in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "absent"])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_what_is_no_file_is_no_checkpoint(tmp_path: Path, name: str, kind: str) -> None:
    write_checkpoint(tmp_path, 1, Checkpoint({"network": {}}, {"state": {}, "param_groups": []}, {}), keep=1)
    (tmp_path / "epoch_000001" / name).unlink()
    ODD[kind](tmp_path / "epoch_000001" / name)
    with pytest.raises(RunError, match=r"epoch_000001: expected a checkpoint, got .*Remove it"):
        latest_checkpoint(tmp_path)


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 1, Checkpoint({"network": {}}, {"state": {}, "param_groups": []}, {}), keep=1)
    refuse_listing(monkeypatch, tmp_path)
    with pytest.raises(DataError, match="expected a folder that can be listed"):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_of_another_network_is_refused(part_images: ImageReader, tmp_path: Path) -> None:
    train(Mean(), part_images, tmp_path, epochs=1)
    other = Mean()
    other.network = nn.Linear(2, 3)
    with pytest.raises(RunError, match="expected a checkpoint of this training, got another"):
        train(other, part_images, tmp_path, resume=True)


# --- what goes wrong


def test_a_loss_that_is_not_finite_says_what_to_turn(part_images: ImageReader, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected a finite loss, got (nan|inf) in step \d+\. Lower the learning rate"):
        train(Mean(rate=1e30), part_images, tmp_path, epochs=20)


def test_an_error_of_validation_that_is_not_finite_is_told(part_images: ImageReader, tmp_path: Path) -> None:
    task = Mean()
    task.errors = [math.nan]
    with pytest.raises(RunError, match="expected a finite validation error, got nan after epoch 1"):
        train(task, part_images, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_says_which_settings_to_turn(
    part_images: ImageReader, tmp_path: Path, error: BaseException
) -> None:
    task = Mean()
    task.fail = error
    with pytest.raises(RunError, match=r"out of memory with batch_size=4, .*Lower batch_size \(accumulate=2 with half"):
        train(task, part_images, tmp_path)


@pytest.mark.parametrize("saves", [True, False])
def test_saving_memory_is_advised_where_it_is_not_done(part_images: ImageReader, tmp_path: Path, saves: bool) -> None:
    task = Mean()
    task.fail = MemoryError()
    settings = from_flat(BaseConfig, {"resize": (SIZE, SIZE), "gradient_checkpointing": saves})
    with pytest.raises(RunError, match="out of memory") as raised:
        run_loop(task, part_images, settings, tmp_path, progress=no_progress)
    assert str(raised.value).endswith("bf16." if saves else "bf16 or gradient_checkpointing=true.")


def test_other_errors_are_not_taken_for_a_lack_of_memory(part_images: ImageReader, tmp_path: Path) -> None:
    task = Mean()
    task.fail = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(task, part_images, tmp_path)


def test_images_are_the_same_kept_or_decoded_anew(tmp_path: Path) -> None:
    paths = []
    for index in range(5):
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), np.full((SIZE, SIZE, 3), index, np.uint8))
    spec = config().preprocessing
    counts: list[int] = []
    cached = ImageReader(paths, spec, 2, 100, lambda stage, count, total: counts.append(count))
    anew = ImageReader(paths, spec, 2, 0)
    assert counts == [5]
    assert len(cached) == len(anew) == 5
    for first, second in zip(cached.batches([4, 0, 3], 2), anew.batches([4, 0, 3], 2), strict=True):
        np.testing.assert_array_equal(first, second)
