"""Blocks that are computed again for the gradients: the same loss and gradients, with fewer numbers kept."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_base import SIDE, tiny_autoencoder, tiny_base
from tiny_dataset import CATEGORY, DEFECTS, training_images
from torch import Tensor, nn

from flawscope.config import CONFIGS, BaseConfig, TrainedConfig, build_config
from flawscope.config.setting_parts import places_of
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.support_set import write_support
from flawscope.errors import ArgumentError
from flawscope.progress import no_progress
from flawscope.training.detectors.ddad import DenoiserTask
from flawscope.training.detectors.dsad import DsadTask
from flawscope.training.diffusion.autoencoder import AutoencoderTask, Encoder
from flawscope.training.features.backbone import build_backbone
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import Task
from flawscope.training.synthesis.base_latents import encode_images
from flawscope.training.synthesis.base_training import BaseTask, base_settings
from flawscope.training.synthesis.embedding import EmbeddingTask
from flawscope.training.synthesis.inpainting import InpaintingTask
from flawscope.training.synthesis.support_examples import SupportExamples, describe, read_support_examples
from flawscope.training.synthesis.word_tokenizer import write_tokenizer

pytestmark = pytest.mark.long

SETTINGS: dict[str, dict[str, Any]] = {
    "ddad": {
        "backbone": "scattering",
        "stages": [1, 2],
        "widths": [8, 16],
        "layers": 1,
        "attention": [8],
        "dropout": 0.2,
        "steps": 3,
    },
    "dsad": {
        "backbone": "scattering",
        "widths": [16, 32],
        "layers": 1,
        "heads": 2,
        "context": 8,
        "hint_widths": [4, 8],
        "sketch_size": 8,
    },
    "autoencoder": {"widths": [8, 16], "layers": 1},
    "base": {"widths": [8, 16], "layers": 1, "heads": 2, "context": 8, "text_layers": 1, "autoencoder": "autoencoder"},
    "embedding": {"vectors": 2},
    "inpainting": {"adapt": "lora"},
    "inpainting, all of the network": {"adapt": "full"},
}
HALF = "base, in half precision"
"""Attention is computed in another way there, which has to be the same when it is computed again."""


@pytest.fixture(scope="module")
def support(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SupportExamples:
    folder = tmp_path_factory.mktemp("support") / "set"
    write_support(open_dataset(tiny_root, CATEGORY), folder, shots=2, split="test")
    return read_support_examples(folder)


def task_of(kind: str, recompute: bool, root: Path, support: SupportExamples) -> tuple[Task, list[nn.Module], Tensor]:
    """Return a task, the networks whose blocks are computed again, and a batch."""
    method = kind.partition(",")[0]
    changes = SETTINGS.get(kind, SETTINGS[method])
    settings: Any = build_config(method, {"resize": SIDE, "gradient_checkpointing": recompute, **changes})[0]
    part_images = ImageReader(training_images(root)[:3], settings.preprocessing, 1, 64)
    images = torch.from_numpy(next(iter(part_images.batches(range(3), 3))))
    numbers = torch.arange(3)
    task: Any
    if method == "embedding":
        base = tiny_base()
        task = EmbeddingTask(settings, base, support.of(CATEGORY, DEFECTS[0]))
        return task, [base.unet], numbers
    if method == "inpainting":
        task = InpaintingTask(settings, tiny_base(inpainting=True), support, describe(support))
        network: Any = task.network
        return task, [network.plain_unet], numbers
    if method == "base":
        task = base_task(settings, part_images)
        return task, [task.network.unet], numbers
    backbone = build_backbone(settings.features, None)[0]
    if method == "ddad":
        task = DenoiserTask(settings, backbone, part_images)
        return task, [task.network.network], images
    if method == "dsad":
        task = DsadTask(settings, backbone, tiny_autoencoder(), "signed", part_images)
        return task, [task.denoiser.unet, task.denoiser.guidance], images
    task = AutoencoderTask(settings, backbone, part_images)
    return task, [task.autoencoder], images


def base_task(config: BaseConfig, images: ImageReader) -> BaseTask:
    tokenizer, autoencoder = write_tokenizer([CATEGORY]), tiny_autoencoder()
    data = encode_images(config, Encoder(autoencoder, "signed"), images, 1, 1, no_progress)
    settings = base_settings(config, autoencoder, "signed", tokenizer)
    preview = next(iter(images.batches(range(1), 1)))
    return BaseTask(config, autoencoder, settings, tokenizer, [CATEGORY], data, data, preview)


def step(
    kind: str, recompute: bool, root: Path, support: SupportExamples
) -> tuple[float, dict[str, Tensor], int, dict[str, int]]:
    """Return loss, gradients, how many numbers were kept for them, and how often blocks of two kinds were entered."""
    task, networks, batch = task_of(kind, recompute, root, support)
    generator = torch.Generator().manual_seed(3)
    task.network.train()
    entered = {"ResnetBlock2D": 0}
    for network in networks:
        for module in network.modules():
            if type(module).__name__ in entered:
                module.register_forward_pre_hook(lambda tensor, _: count(entered, type(tensor).__name__))
    task.loss(task.network, batch, torch.Generator().manual_seed(3))  # what is encoded once is encoded here
    entered.update(dict.fromkeys(entered, 0))
    saved: list[int] = []
    half = torch.autocast("cpu", torch.bfloat16) if kind == HALF else contextlib.nullcontext()
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: noted(saved, tensor), lambda tensor: tensor), half:
        loss = task.loss(task.network, batch, generator)
    loss.backward()
    gradients = {name: tensor.grad for name, tensor in task.network.named_parameters() if tensor.grad is not None}
    return float(loss.detach()), gradients, sum(saved), entered


def count(entered: dict[str, int], name: str) -> None:
    entered[name] += 1


def noted(saved: list[int], tensor: Tensor) -> Tensor:
    saved.append(tensor.numel())
    return tensor


@pytest.mark.parametrize("kind", [*SETTINGS, HALF])
def test_loss_and_gradients_are_the_same_with_fewer_numbers_kept(
    kind: str, tiny_root: Path, support: SupportExamples
) -> None:
    loss, gradients, saved, entered = step(kind, False, tiny_root, support)
    again_loss, again, again_saved, twice = step(kind, True, tiny_root, support)
    assert again_loss == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == again.keys() != set()
    # In half precision parts of a sum may be rounded in another order.
    tolerance = 1e-2 if kind == HALF else 1e-5
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))
    assert sum(float(gradient.abs().sum()) for gradient in gradients.values()) > 0.0
    assert again_saved < 0.7 * saved
    assert entered["ResnetBlock2D"] > 0
    # Blocks through which no gradient flows are not computed again: those before the words reach the network.
    assert entered["ResnetBlock2D"] < twice["ResnetBlock2D"] <= 2 * entered["ResnetBlock2D"]


def test_what_was_asked_for_before_does_not_hold_for_the_next(tiny_root: Path, support: SupportExamples) -> None:
    base = tiny_base()
    images = support.of(CATEGORY, DEFECTS[0])
    for recompute in (True, False):
        settings: Any = build_config("embedding", {"resize": SIDE, "gradient_checkpointing": recompute})[0]
        EmbeddingTask(settings, base, images)
        assert base.unet.is_gradient_checkpointing is recompute


@pytest.mark.parametrize("method", list(CONFIGS))
def test_only_methods_that_can_save_memory_so_have_the_setting(method: str) -> None:
    kind = CONFIGS[method]
    has_unet = issubclass(kind, TrainedConfig) and method not in ("stfpm", "segmenter", "draem", "destseg")
    assert ("gradient_checkpointing" in places_of(kind)) == has_unet
    if not has_unet:
        with pytest.raises(ArgumentError, match=f"gradient_checkpointing: is no setting of {method}"):
            build_config(method, {"gradient_checkpointing": True})
