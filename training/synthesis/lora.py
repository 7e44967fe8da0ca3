"""Trainable UNet of an inpainting network: LoRA on its attention, or all weights.

Low-rank changes (LoRA, arXiv:2106.09685) are those of the package peft: W becomes W + alpha / rank · B · A, with B zero
at the start. They learn and are kept by themselves; the UNet they change is no part of a checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from flawscope.config import InpaintingConfig
from flawscope.errors import MissingExtra, RunError
from flawscope.training.diffusion.unet import recompute_blocks
from flawscope.training.loop.network_state import load_state

if TYPE_CHECKING:
    from flawscope.training.synthesis.base_model import SynthesisBase
    from flawscope.training.synthesis.generator_run import SynthesisRun

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""What is changed: query, key, value and output of every attention of the UNet, by the names of diffusers."""

LORA, UNET = "lora", "unet"
"""Groups of tensors in a run."""

_PREFIX, _ADAPTER = "base_model.model.", "default"  # how peft names what it wraps, and its first adapter
_Self = TypeVar("_Self", bound="AdaptedUnet")


class AdaptedUnet(nn.Module):
    """A UNet with low-rank changes; parameters, state and gradients are those of the changes alone.

    `forward` takes what the UNet takes, float32 [N, C, h, w], timesteps int64 [N] and context float32 [N, L, D], and
    returns the noise. At the start it is exactly what the UNet says. The changes are named as in diffusers, for example
    `mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight`.

    Args:
        unet: A UNet2DConditionModel of diffusers, which stays as it is; its parameters are shared, not copied.
        config: Rank, alpha, the seed of A, and whether what the UNet's blocks compute is kept for the gradients.

    Attributes:
        wrapped: The UNet with its changes, as peft wraps it.

    Raises:
        MissingExtra: If peft is not installed.
    """

    def __init__(self, unet: nn.Module, config: InpaintingConfig) -> None:
        super().__init__()
        shared = {id(one): one for one in unet.parameters()}
        copied = copy.deepcopy(unet, shared)
        wrapped = wrap_unet(copied, config)
        recompute_blocks(copied, config.denoising.gradient_checkpointing)
        # Not a part of this module: its state would be the whole UNet's.
        self._unregistered = (wrapped,)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                _put(self, _plain_name(name), parameter)

    @property
    def wrapped(self) -> nn.Module:
        """The UNet with its changes, as peft wraps it."""
        return self._unregistered[0]

    def forward(self, x: Tensor, levels: Tensor, context: Tensor) -> Tensor:
        """Return the noise."""
        predicted: Tensor = self.wrapped(x, levels, context, return_dict=False)[0]
        return predicted

    def _apply(self: _Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Self:
        # What moves the changes to a device has to move the UNet as well; the changes are in both, and the same.
        wrapped: Any = self.wrapped
        wrapped._apply(fn, recurse)
        applied: Any = super()
        applied._apply(fn, recurse)
        return self


class WholeUnet(nn.Module):
    """A copy of a UNet, all of which learns; `forward` as of `AdaptedUnet`.

    Args:
        unet: A UNet2DConditionModel of diffusers, which stays as it is.
        config: Whether what its blocks compute is kept for the gradients.

    Attributes:
        unet: The copy.
    """

    def __init__(self, unet: nn.Module, config: InpaintingConfig) -> None:
        super().__init__()
        self.unet = copy.deepcopy(unet).requires_grad_(True)
        recompute_blocks(self.unet, config.denoising.gradient_checkpointing)

    def forward(self, x: Tensor, levels: Tensor, context: Tensor) -> Tensor:
        """Return the noise."""
        predicted: Tensor = self.unet(x, levels, context, return_dict=False)[0]
        return predicted


def learning_unet(unet: nn.Module, config: InpaintingConfig) -> nn.Module:
    """Return what learns, as the setting `adapt` says."""
    return AdaptedUnet(unet, config) if config.adapt == "lora" else WholeUnet(unet, config)


def networks_of(config: InpaintingConfig, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the state of what learned as a run has it: group -> name -> tensor."""
    if config.adapt == "lora":
        return {LORA: dict(state)}
    return {UNET: {name.removeprefix("unet."): value for name, value in state.items()}}


def restore_unet(base: SynthesisBase, run: SynthesisRun) -> Any:
    """Return the UNet of a run of `train inpainting`: with the changes merged into its weights, or as it was trained.

    Args:
        base: What it was trained on; it stays as it is, and weights that are not changed are shared.
        run: The run.

    Returns:
        A UNet2DConditionModel of diffusers, frozen and in inference mode.

    Raises:
        MissingExtra: If peft is not installed.
        RunError: If the run is of another kind or of another base, or its tensors do not fit.
    """
    if run.record.kind != "inpainting":
        raise RunError(f"{run.path}: expected a run of train inpainting, got one of train {run.record.kind}.")
    if run.record.base != base.identity:
        raise RunError(
            f"{run.path}: expected the base that it was trained on ({run.record.base[:12]}), got another "
            f"({base.identity[:12]}). Name that base."
        )
    config = cast("InpaintingConfig", run.record.config)
    if config.adapt == "full":
        unet: Any = copy.deepcopy(base.unet)
        load_state(unet, run.tensors.get(UNET, {}), f"{run.path}: {UNET}")
        return unet
    changed = tuple(f"{target}.weight" for target in TARGETS)
    shared = {id(one): one for name, one in base.unet.named_parameters() if not name.endswith(changed)}
    wrapped: Any = wrap_unet(copy.deepcopy(base.unet, shared), config)
    state = run.tensors.get(LORA, {})
    known = {_plain_name(name): one for name, one in wrapped.named_parameters() if one.requires_grad}
    fitting = sum(name in state and state[name].shape == one.shape for name, one in known.items())
    if fitting != len(known) or len(state) != len(known):
        raise RunError(
            f"{run.path}: {LORA}: expected the {len(known)} tensors that the base and rank={config.rank} ask for, got "
            f"{len(state)}, of which {fitting} fit. Train again."
        )
    with torch.no_grad():
        for name, one in known.items():
            one.copy_(state[name])
    return wrapped.merge_and_unload().requires_grad_(False).eval()


def wrap_unet(unet: nn.Module, config: InpaintingConfig) -> nn.Module:
    """Put low-rank changes into a UNet, which is changed itself, and return it as peft wraps it.

    A is drawn from the seed, B is zero; nothing else learns.

    Raises:
        MissingExtra: If peft is not installed.
    """
    try:
        import peft
    except ImportError as err:
        raise MissingExtra("low-rank adaptation", "peft", "train") from err
    kind: Any = peft.LoraConfig
    settings = kind(r=config.rank, lora_alpha=config.alpha, target_modules=list(TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        wrapped: nn.Module = peft.get_peft_model(unet, settings)
    return wrapped


def _plain_name(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(f".{_ADAPTER}.", ".")


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Make a parameter a part of a module under a name with dots."""
    *parts, last = name.split(".")
    node = root
    for part in parts:
        if part not in dict(node.named_children()):
            node.add_module(part, nn.Module())
        node = node.get_submodule(part)
    node.register_parameter(last, parameter)
