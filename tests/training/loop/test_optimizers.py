"""The optimizers of what learns to tell noise, and going on with the one whose state has 8 bits."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import Killed, killing_progress
from torch import Tensor, nn

from flawscope.config import BaseConfig, DdadConfig, InpaintingConfig, build_config
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.progress import no_progress
from flawscope.training.loop.checkpoints import Checkpoint, latest_checkpoint, write_checkpoint
from flawscope.training.loop.image_batches import Numbers
from flawscope.training.loop.loop import Trained, run_loop
from flawscope.training.loop.optimizers import build_optimizer
from flawscope.training.loop.workspace import open_workspace

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
LARGE, SMALL = (96, 64), (8,)
"""Shapes of which the first has enough numbers for 8 bits, 4,096 or more, and the second has not."""


def config(**changes: Any) -> BaseConfig:
    plain = {"epochs": 4, "batch_size": 2, "learning_rate": 0.01, "warmup_steps": 2, "clip_norm": 0.0}
    settings = build_config("base", {**plain, **changes})[0]
    assert isinstance(settings, BaseConfig)
    return settings


class Regression:
    """Learns a matrix and a vector from noisy samples of them."""

    def __init__(self, config: BaseConfig) -> None:
        self._config = config
        generator = torch.Generator().manual_seed(1)
        self.targets = [torch.randn(shape, generator=generator) for shape in (LARGE, SMALL)]
        self.network: nn.Module = nn.ParameterList(torch.zeros(shape) for shape in (LARGE, SMALL))

    def optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self._config.denoising, self.network.parameters(), rate=self._config.loop.learning_rate)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        parts = zip(network.parameters(), self.targets, strict=True)
        noisy = [
            (parameter, target + 0.1 * torch.randn(target.shape, generator=generator)) for parameter, target in parts
        ]
        return torch.stack([(parameter - target).square().sum() for parameter, target in noisy]).sum()

    def validate(self) -> dict[str, float]:
        parts = zip(self.network.parameters(), self.targets, strict=True)
        return {"error": float(sum((parameter.detach() - target).square().mean() for parameter, target in parts))}

    def preview(self, path: Path) -> None:
        path.write_bytes(b"preview")


def train(task: Regression, settings: BaseConfig, folder: Path, resume: bool = False) -> Trained:
    return run_loop(task, Numbers(10), settings, folder, resume=resume, progress=no_progress)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_the_settings_name_the_optimizer_and_its_numbers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    settings = config(optimizer=name, betas=[0.8, 0.99], weight_decay=0.3)
    optimizer = build_optimizer(
        settings.denoising, Regression(settings).network.parameters(), rate=0.5, epsilon=1e-6, fused=True
    )
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["eps"], group["weight_decay"], group["fused"]) == (0.5, 1e-6, 0.3, True)
    assert tuple(group["betas"]) == (0.8, 0.99)


def test_decay_goes_through_the_gradients_of_adam_alone() -> None:
    ends = []
    for name in ("adamw", "adam"):
        settings = config(optimizer=name, weight_decay=0.5)
        weight = nn.Parameter(torch.ones(2))
        optimizer = build_optimizer(settings.denoising, [weight], rate=0.1)
        weight.grad = torch.tensor([1.0, 100.0])
        optimizer.step()
        ends.append(weight.tolist())
    # The first step of Adam is the sign of the gradient; AdamW takes the decay apart from it.
    assert ends == [pytest.approx([1 - 0.1 - 0.05] * 2, abs=1e-6), pytest.approx([0.9] * 2, abs=1e-6)]


@needs_bitsandbytes
def test_eight_bits_learn_what_thirty_two_learn(tmp_path: Path) -> None:
    tasks = {}
    for name in ("adamw", "adamw8bit"):
        settings = config(optimizer=name, epochs=30, learning_rate=0.05, betas=[0.9, 0.99])
        tasks[name] = Regression(settings)
        train(tasks[name], settings, tmp_path / name)
    start = Regression(config()).validate()["error"]
    ends = {name: task.validate()["error"] for name, task in tasks.items()}
    assert ends["adamw"] < 0.02 * start
    assert ends["adamw8bit"] < 0.02 * start
    large, small = (
        [parameter.detach() for parameter in parameters]
        for parameters in zip(*(task.network.parameters() for task in tasks.values()), strict=True)
    )
    assert not torch.equal(*large)
    torch.testing.assert_close(small[0], small[1], rtol=1e-4, atol=1e-5)  # few numbers keep their bits


@needs_bitsandbytes
def test_a_checkpoint_holds_a_state_of_eight_bits(tmp_path: Path) -> None:
    settings = config(optimizer="adamw8bit")
    task = Regression(settings)
    optimizer = task.optimizer()
    task.loss(task.network, torch.zeros(1), torch.Generator()).backward()
    optimizer.step()
    state = optimizer.state_dict()
    write_checkpoint(tmp_path, 1, Checkpoint({"network": task.network.state_dict()}, state, {}), keep=1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert_same(checkpoint.optimizer["state"], state["state"])
    moments = [entry for entry in tensors(checkpoint.optimizer["state"][0]) if entry.dtype == torch.uint8]
    assert [tuple(moment.shape) for moment in moments] == [LARGE, LARGE]
    assert not [entry for entry in tensors(checkpoint.optimizer["state"][1]) if entry.dtype == torch.uint8]


def tensors(entries: dict[str, Any]) -> list[Tensor]:
    inner = [leaf for value in entries.values() for leaf in (value.values() if isinstance(value, dict) else [value])]
    return [leaf for leaf in inner if isinstance(leaf, Tensor)]


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(actual[name], value)
    elif isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    else:
        assert actual == expected


@needs_bitsandbytes
def test_going_on_with_eight_bits_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    settings = config(optimizer="adamw8bit", accumulate=2)
    whole, begun, again = (Regression(settings) for _ in range(3))
    expected = train(whole, settings, tmp_path / "whole")
    with pytest.raises(Killed):
        run_loop(begun, Numbers(10), settings, tmp_path / "parts", progress=killing_progress(13))
    resumed = train(again, settings, tmp_path / "parts", resume=True)
    assert resumed.losses == expected.losses
    for first, second in zip(whole.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_package_that_is_missing_is_said_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    settings = config(optimizer="adamw8bit")
    message = r'^the optimizer adamw8bit needs the package bitsandbytes, .*pip install "flawscope\[adamw8bit\]"$'
    with pytest.raises(MissingExtra, match=message):
        Regression(settings).optimizer()
    with pytest.raises(MissingExtra, match=message), open_workspace(tmp_path / "run", settings, "", "", False):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["ddad", "dsad", "lafite", "base", "embedding", "inpainting"])
def test_a_word_that_is_no_optimizer_is_refused(method: str) -> None:
    with pytest.raises(ArgumentError, match="optimizer: expected one of adamw, adamw8bit, adam, got 'sgd'"):
        build_config(method, {"optimizer": "sgd"})


def test_the_settings_of_the_optimizer_keep_the_defaults_of_their_methods() -> None:
    assert (DdadConfig().denoising.weight_decay, DdadConfig().denoising.betas) == (1e-6, (0.95, 0.999))
    assert (InpaintingConfig().denoising.weight_decay, InpaintingConfig().denoising.betas) == (0.01, (0.9, 0.999))
