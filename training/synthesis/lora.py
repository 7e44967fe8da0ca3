"""Trainable networks of a base model: LoRA on the attention of UNet or text encoder, or all weights of the UNet.

LoRA (arXiv:2106.09685, section 4.1) is that of the package peft: W becomes W + alpha / rank · B · A, with B zero at the
start. Only A and B are trained and stored; the frozen UNet is no part of a checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from flawscope.config import InpaintingConfig
from flawscope.errors import MissingExtra, RunError
from flawscope.training.diffusion.unet import recompute_blocks
from flawscope.training.loop.network_state import load_state
from flawscope.training.synthesis.text_encoder import TextEncoder

if TYPE_CHECKING:
    from flawscope.training.synthesis.base_model import SynthesisBase
    from flawscope.training.synthesis.generator_run import SynthesisRun

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers with LoRA: query, key, value and output of every attention of the UNet, by their names in diffusers."""

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The same layers of a text encoder, by their names in transformers and in the LDMBertModel of diffusers."""

LORA, UNET = "lora", "unet"
"""Names of the groups of tensors in a run."""

_PREFIX, _ADAPTER = "model.", "default"  # peft's prefix of wrapped names, and the name of the adapter
_Self = TypeVar("_Self", bound="AdaptedNetwork")


class AdaptedNetwork(nn.Module):
    """A network with LoRA; parameters, state and gradients are those of the low-rank matrices alone.

    The matrices are named after the layers of the network, for example
    `mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight`. At the start the network is exactly the one
    without LoRA.

    Args:
        network: The network, which is not changed; its parameters are shared, not copied.
        config: Rank, alpha, and the seed of A.
        targets: Names of the layers that get LoRA.

    Attributes:
        wrapped: The network with LoRA, as peft wraps it.
        inner: The same without peft's wrapper.

    Raises:
        MissingExtra: If peft is not installed.
    """

    def __init__(self, network: nn.Module, config: InpaintingConfig, targets: Sequence[str]) -> None:
        super().__init__()
        # peft changes the modules of the network in place. The memo of deepcopy makes new modules around the same
        # parameters, so that the base stays as it is and its weights are in memory once.
        shared = {id(parameter): parameter for parameter in network.parameters()}
        copied = copy.deepcopy(network, shared)
        wrapped = with_lora(copied, config, targets)
        # In a tuple, so that nn.Module does not register it: the state would be that of the whole network.
        self._unregistered = (wrapped, copied)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                _put(self, _plain_name(name), parameter)

    @property
    def wrapped(self) -> nn.Module:
        """The network with LoRA, as peft wraps it."""
        return self._unregistered[0]

    @property
    def inner(self) -> nn.Module:
        """The network with LoRA, without peft's wrapper."""
        return self._unregistered[1]

    def _apply(self: _Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Self:
        # to() must also move the network, which is not registered. The matrices are in both, as the same objects.
        wrapped: Any = self.wrapped
        wrapped._apply(fn, recurse)
        applied: Any = super()
        applied._apply(fn, recurse)
        return self


class AdaptedUnet(AdaptedNetwork):
    """A UNet with LoRA.

    `forward` takes the inputs of the UNet, float32 [N, C, h, w], timesteps int64 [N] and context float32 [N, L, D], and
    returns the noise.

    Args:
        unet: A UNet2DConditionModel of diffusers; see `AdaptedNetwork`.
        config: Also whether gradient checkpointing is used.

    Raises:
        MissingExtra: If peft is not installed.
    """

    def __init__(self, unet: nn.Module, config: InpaintingConfig) -> None:
        super().__init__(unet, config, TARGETS)
        recompute_blocks(self.inner, config.denoising.gradient_checkpointing)

    def forward(self, x: Tensor, levels: Tensor, context: Tensor) -> Tensor:
        """Return the noise."""
        predicted: Tensor = self.wrapped(x, levels, context, return_dict=False)[0]
        return predicted


class AdaptedText(AdaptedNetwork):
    """A text encoder with LoRA; `forward` as of `flawscope.training.synthesis.text_encoder.TextEncoder`.

    Args:
        text: The text encoder.
        config: See `AdaptedNetwork`.

    Raises:
        MissingExtra: If peft is not installed.
    """

    def __init__(self, text: TextEncoder, config: InpaintingConfig) -> None:
        super().__init__(text.model, config, TEXT_TARGETS)

    def forward(self, tokens: Tensor, vectors: Tensor, placed: Tensor) -> Tensor:
        """Return the context for the UNet's cross-attention."""
        context: Tensor = TextEncoder(self.inner)(tokens, vectors, placed)
        return context


class WholeUnet(nn.Module):
    """A copy of a UNet, all weights of which are trained; `forward` as of `AdaptedUnet`.

    Args:
        unet: A UNet2DConditionModel of diffusers, which is not changed.
        config: Whether gradient checkpointing is used.

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
    """Return the network to train, by the setting `adapt`."""
    return AdaptedUnet(unet, config) if config.adapt == "lora" else WholeUnet(unet, config)


def restore_unet(base: SynthesisBase, run: SynthesisRun) -> Any:
    """Return the UNet of a run of `train inpainting`: with LoRA merged into its weights, or with its own weights.

    Args:
        base: The base model that it was trained on. It is not changed; weights without LoRA are shared with it.
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
    # The kind was checked above, so the settings are of this type.
    config = cast("InpaintingConfig", run.record.config)
    if config.adapt == "full":
        unet: Any = copy.deepcopy(base.unet)
        load_state(unet, run.tensors.get(UNET, {}), f"{run.path}: {UNET}")
        return unet
    return merged(base.unet, config, TARGETS, run.tensors.get(LORA, {}), f"{run.path}: {LORA}")


def merged(
    network: nn.Module, config: InpaintingConfig, targets: Sequence[str], state: Mapping[str, Tensor], what: str
) -> Any:
    """Return a network with LoRA merged into its weights, frozen and in inference mode.

    Args:
        network: The network. It is not changed; weights without LoRA are shared with it.
        config: Rank and alpha.
        targets: Names of the layers that have LoRA.
        state: The matrices; see `AdaptedNetwork`.
        what: Name of the matrices, for errors.

    Raises:
        MissingExtra: If peft is not installed.
        RunError: If the matrices do not fit.
    """
    # Merging writes into the weights of these layers, so they are copied; all others are shared with the network.
    written = tuple(f"{target}.weight" for target in targets)
    shared = {id(weight): weight for name, weight in network.named_parameters() if not name.endswith(written)}
    wrapped: Any = with_lora(copy.deepcopy(network, shared), config, targets)
    matrices = {_plain_name(name): matrix for name, matrix in wrapped.named_parameters() if matrix.requires_grad}
    fitting_count = sum(name in state and state[name].shape == matrix.shape for name, matrix in matrices.items())
    # Both ways: copy_ would broadcast a wrong shape, and unknown tensors would be lost silently.
    if fitting_count != len(matrices) or len(state) != len(matrices):
        raise RunError(
            f"{what}: expected the {len(matrices)} tensors that the base and rank={config.rank} ask for, "
            f"got {len(state)}, of which {fitting_count} fit. Train again."
        )
    with torch.no_grad():
        for name, matrix in matrices.items():
            matrix.copy_(state[name])
    return wrapped.merge_and_unload().requires_grad_(False).eval()


def with_lora(network: nn.Module, config: InpaintingConfig, targets: Sequence[str]) -> nn.Module:
    """Add LoRA to layers of a network, in place, and return it as peft wraps it.

    A is random from the seed, B is zero; nothing else is trained.

    Raises:
        MissingExtra: If peft is not installed.
    """
    try:
        import peft
    except ImportError as err:
        raise MissingExtra("low-rank adaptation", "peft", "train") from err
    library: Any = peft
    settings = library.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(targets))
    # peft draws A from torch's global generator; forked, so that the caller's random numbers stay the same.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        # Not get_peft_model: its wrapper asks models of transformers for things that they warn about.
        wrapped: nn.Module = library.LoraModel(network, {_ADAPTER: settings}, _ADAPTER)
    return wrapped


def _plain_name(name: str) -> str:
    return name.removeprefix(_PREFIX).replace(f".{_ADAPTER}.", ".")


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a name with dots, with a module for each of its parts."""
    *parts, last = name.split(".")
    node = root
    for part in parts:
        if part not in dict(node.named_children()):
            node.add_module(part, nn.Module())
        node = node.get_submodule(part)
    node.register_parameter(last, parameter)
