"""What an inpainting network learns of the text: nothing, an embedding for each defect type, or the text encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from flawscope.config import EmbeddingConfig, InpaintingConfig
from flawscope.errors import ArgumentError, RunError
from flawscope.training.loop.network_state import load_state
from flawscope.training.synthesis.latent_cache import TextTokens
from flawscope.training.synthesis.lora import LORA, TEXT_TARGETS, UNET, AdaptedText, AdaptedUnet, WholeUnet, merged
from flawscope.training.synthesis.text_encoder import TextEncoder

if TYPE_CHECKING:
    from flawscope.training.synthesis.base_model import SynthesisBase
    from flawscope.training.synthesis.generator_run import SynthesisRun

TEXT, TEXT_LORA, VECTORS = "text", "text_lora", "vectors"
"""Names of the groups of tensors in a run; those of the UNet are in `flawscope.training.synthesis.lora`."""

_SPREAD = 0.01
"""Deviation of the noise on the second and further vectors at the start, relative to that of the first vector."""

LearnText = Literal["frozen", "vectors", "encoder"]

TEXT_RATES: dict[LearnText, float] = {"frozen": 1.0, "vectors": 10.0, "encoder": 1.0}
"""Learning rate of what is learned of the text, as a multiple of the UNet's. A few vectors learn among millions of
weights: at the same rate they stay nearly where they began."""


def text_learning(config: InpaintingConfig, base: SynthesisBase) -> LearnText:
    """Return what is learned of the text, filled in where the settings leave it open.

    A small base has seen one kind of sentence, about normal images: its encodings of two defects hardly differ.
    """
    return config.learn_text or ("vectors" if base.is_small else "frozen")


def first_vectors(config: EmbeddingConfig | InpaintingConfig, base: SynthesisBase, types: int = 1) -> Tensor:
    """Return the vectors at the start, float32 [types · V, W]: the embedding of `init_word`.

    Vectors after the first of all get a little noise from the seed: equal ones would differ by their positions alone,
    and those of two defect types not at all.

    Raises:
        ArgumentError: If `init_word` is not a single token.
    """
    try:
        token = base.prompts.word(config.init_word)
    except ArgumentError as err:
        raise ArgumentError(f"init_word: {err}") from err
    # On the CPU with a generator of its own: the start must not depend on the device or on what was drawn before.
    word = base.text.table.detach()[token].float().cpu()
    noise = torch.randn((types * config.vectors, len(word)), generator=torch.Generator().manual_seed(config.seed))
    noise[0] = 0.0
    return word + _SPREAD * word.std() * noise


class DefectTexts:
    """The tokenized texts of a training on several defect types, each with the slots of its type's vectors.

    Args:
        base: The base model.
        texts: Texts by defect type, in the order of the types; row 0 of the result is the empty prompt.
        config: Placeholder and number of vectors.
        learn: What is learned of the text. With `vectors`, the placeholder is put before every text that lacks it.

    Attributes:
        tokens: The texts; see `TextTokens`.
        rows: For each type, the row of each of its texts.
        texts: For each type, its texts as they are trained.

    Raises:
        ArgumentError: If a text has no room for the vectors.
    """

    def __init__(
        self, base: SynthesisBase, texts: Sequence[Sequence[str]], config: InpaintingConfig, learn: LearnText
    ) -> None:
        has_vectors = learn == "vectors"
        self.texts = [
            [placed_text(text, config.placeholder) if has_vectors else text for text in of_type] for of_type in texts
        ]
        rows: dict[tuple[int, str], int] = {}
        for number, of_type in enumerate(self.texts):
            for text in of_type:
                # With vectors the same words mean another defect in another type.
                rows.setdefault((number if has_vectors else 0, text), len(rows) + 1)
        self.tokens = TextTokens(base.prompts, ["", *(text for _, text in rows)], config.vectors if has_vectors else 0)
        self.rows = [
            [rows[number if has_vectors else 0, text] for text in of_type] for number, of_type in enumerate(self.texts)
        ]
        if has_vectors:
            types = torch.tensor([0, *(number for number, _ in rows)])
            self.tokens.slots += (self.tokens.placed > 0) * (config.vectors * types)[:, None]


def placed_text(text: str, placeholder: str) -> str:
    """Return a text with the placeholder as its first word, unless it is a word of it already."""
    return text if placeholder in text.split() else f"{placeholder} {text}"


class InpaintingNetwork(nn.Module):
    """The trained UNet, and what is learned of the text.

    Args:
        config: Settings.
        base: The base model, which is not changed; its text encoder is moved with this network.
        learn: What is learned of the text.
        texts: The texts.

    Attributes:
        unet: The UNet, with LoRA or a copy of all weights.
        vectors: Vectors of all types, float32 [types · V, W], or None.
        text: The trained text encoder, or None.

    Raises:
        ArgumentError: If `init_word` is not a single token.
        MissingExtra: If peft is not installed.
    """

    def __init__(self, config: InpaintingConfig, base: SynthesisBase, learn: LearnText, texts: DefectTexts) -> None:
        super().__init__()
        is_lora = config.adapt == "lora"
        self.unet: nn.Module = AdaptedUnet(base.unet, config) if is_lora else WholeUnet(base.unet, config)
        self.vectors = nn.Parameter(first_vectors(config, base, len(texts.texts))) if learn == "vectors" else None
        self.text: nn.Module | None = None
        if learn == "encoder":
            self.text = AdaptedText(base.text, config) if is_lora else copy.deepcopy(base.text).requires_grad_(True)
        # In a tuple, so that nn.Module does not register the base: checkpoints would hold it.
        self._unregistered = (base, texts)

    def forward(self, x: Tensor, levels: Tensor, rows: Tensor, text_noise: Tensor | None = None) -> Tensor:
        """Return the predicted noise, float32 [N, C, h, w].

        Texts are encoded here and not outside: where the network is wrapped, gradients are gathered from this pass.

        Args:
            x: Noisy latents and the other inputs, float32 [N, 2C + 1, h, w].
            levels: Timesteps, int64 [N].
            rows: Rows of the texts, int64 [N].
            text_noise: Added to the encoded texts, float32 [N, L, D], or None.
        """
        context = self.encode(rows)
        predicted: Tensor = self.unet(x, levels, context if text_noise is None else context + text_noise)
        return predicted

    def encode(self, rows: Tensor) -> Tensor:
        """Return the context of texts int64 [N], float32 [N, L, D]; gradients flow to what is learned of the text."""
        base, texts = self._unregistered
        vectors = self.vectors
        base.text.to(rows.device)
        place = None if vectors is None else vectors.__getitem__
        # Without gradients where nothing is learned: the encoder's activations would be kept for nothing.
        with torch.set_grad_enabled(torch.is_grad_enabled() and (vectors is not None or self.text is not None)):
            return texts.tokens.context(base, rows, place, self.text)

    @property
    def plain_unet(self) -> nn.Module:
        """The UNet as the library has it, with LoRA in its layers where there is any."""
        wrapper: Any = self.unet
        plain: nn.Module = wrapper.inner if isinstance(wrapper, AdaptedUnet) else wrapper.unet
        return plain

    @property
    def context_width(self) -> int:
        """Width D of an encoded text."""
        unet: Any = self.plain_unet
        return int(unet.config.cross_attention_dim)

    def parameter_groups(self, rate: float, text_rate: float) -> list[dict[str, Any]]:
        """Return the parameters for an optimizer, those of the text with a learning rate of their own."""
        of_text = [] if self.vectors is None else [self.vectors]
        of_text += [] if self.text is None else list(self.text.parameters())
        groups: list[dict[str, Any]] = [{"params": list(self.unet.parameters())}]
        return groups + ([{"params": of_text, "lr": rate * text_rate}] if of_text else [])

    def groups(
        self, config: InpaintingConfig, types: Sequence[tuple[str, str]], state: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """Return a trained state as a run stores it: group -> name -> tensor.

        Args:
            config: Settings.
            types: Category and name of the defect types, in the order of their vectors.
            state: State of this network.
        """
        is_lora = config.adapt == "lora"
        stored: dict[str, dict[str, Tensor]] = {}
        prefixes = (
            ("unet." if is_lora else "unet.unet.", LORA if is_lora else UNET),
            ("text." if is_lora else "text.model.", TEXT_LORA if is_lora else TEXT),
        )
        for prefix, group in prefixes:
            if tensors := {
                name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
            }:
                stored[group] = tensors
        if self.vectors is not None:
            parts = torch.split(state["vectors"], config.vectors)
            stored[VECTORS] = {f"{category}/{name}": part for (category, name), part in zip(types, parts, strict=True)}
        return stored


def restore_text(base: SynthesisBase, run: SynthesisRun) -> TextEncoder:
    """Return the text encoder of a run of `train inpainting`: that of its base, unless it has learned one.

    Args:
        base: The base model, which is not changed.
        run: The run.

    Raises:
        MissingExtra: If peft is not installed.
        RunError: If its tensors do not fit.
    """
    config = cast("InpaintingConfig", run.record.config)
    if config.learn_text != "encoder":
        return base.text
    what = f"{run.path}: {TEXT_LORA if config.adapt == 'lora' else TEXT}"
    if config.adapt == "lora":
        model = merged(base.text.model, config, TEXT_TARGETS, run.tensors.get(TEXT_LORA, {}), what)
        return TextEncoder(model).requires_grad_(False).eval()
    text = copy.deepcopy(base.text)
    if not run.tensors.get(TEXT):
        raise RunError(f"{what}: expected the weights of the text encoder, got none. Train again.")
    load_state(text.model, run.tensors[TEXT], what)
    return text.requires_grad_(False).eval()
