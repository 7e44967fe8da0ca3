"""Settings of the defect generators: the small base model, learned embeddings, and inpainting networks."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.input_settings import ResizeSettings, TiledInputSettings
from flawscope.config.loop_settings import DenoisingSettings, LoopSettings, TrainingDataSettings
from flawscope.config.method_settings import TrainedConfig
from flawscope.config.setting_parts import SettingPart, check


class BaseConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="base"):
    """Small latent text-to-image model of normal images (arXiv:2112.10752), where no Stable Diffusion is at hand.

    Attributes:
        autoencoder: Run of `train autoencoder`, or a folder with an AutoencoderKL in the format of diffusers. Needed.
        inpainting: Train an inpainting UNet, which is given the mask and the masked image as further channels.
        widths: UNet channels per level, finest first.
        layers: Residual blocks per level.
        heads: Attention heads.
        context: Width of the text encoder and of its embeddings.
        text_layers: Transformer layers of the text encoder.
        text_drop: Share of images trained with the empty prompt, for classifier-free guidance.
    """

    input: TiledInputSettings = TiledInputSettings()
    loop: LoopSettings = LoopSettings(
        epochs=200,
        batch_size=16,
        learning_rate=2e-4,
        clip_norm=1.0,
        ema=0.999,
        warmup_steps=200,
        schedule="cosine",
    )
    data: TrainingDataSettings = TrainingDataSettings()
    denoising: DenoisingSettings = DenoisingSettings()
    autoencoder: str | None = None
    inpainting: bool = False
    widths: tuple[int, ...] = (64, 128, 128)
    layers: int = 1
    heads: int = 4
    context: int = 64
    text_layers: int = 2
    text_drop: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.widths) >= 2 and min(self.widths) >= 8, "widths", "two or more, from 8", list(self.widths))
        check(1 <= self.layers <= 8, "layers", "1 to 8", self.layers)
        check(
            # UNet and text encoder share the number of heads.
            self.heads >= 1 and all(width % self.heads == 0 for width in (*self.widths, self.context)),
            "heads",
            "a divisor of the widths and of context",
            self.heads,
        )
        check(8 <= self.context <= 4096, "context", "8 to 4096", self.context)
        check(1 <= self.text_layers <= 64, "text_layers", "1 to 64", self.text_layers)
        # Below 1: a network that never sees a prompt could not be conditioned on one.
        check(0.0 <= self.text_drop < 1.0, "text_drop", "a share from 0 to below 1", self.text_drop)


class AdaptationSettings(SettingPart, frozen=True, kw_only=True):
    """Adaptation of a base model to a few images of defects.

    Training cuts the same window around a defect (`flawscope.imaging.crops`) as drawing does around a box, unless
    `crop_defects` is off.

    Attributes:
        base: Base model: run of `train base`, or a folder of Stable Diffusion or LDM text-to-image in the format of
            diffusers. Needed.
        support: Support set: folder written by `synth support`. Needed.
        drawn: Folders of defects that were drawn from that support set, by `synth paste` or `synth generate`, to learn
            from beside it: a small base has seen no defect, and three are few.
        drawn_number: Most drawn images that are learned from, of every folder and defect type in turn; null for all.
        defects: Defect types to learn; empty for all of the support set.
        repeats: How often an epoch shows each support image.
        scale_lr: Multiply the learning rate by `batch_size` and `accumulate`.
        crop_defects: Train on a window around the defect, not on the whole image.
        crop_fill: Largest share of the window's sides that the defect takes.
        flip: Probability of mirroring image and mask left to right.
        epsilon: Epsilon of Adam.
    """

    base: str | None = None
    support: str | None = None
    drawn: tuple[str, ...] = ()
    drawn_number: int | None = None
    defects: tuple[str, ...] = ()
    repeats: int = 100
    scale_lr: bool = False
    crop_defects: bool = True
    crop_fill: float = 0.5
    flip: float = 0.5
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check(len(set(self.drawn)) == len(self.drawn), "drawn", "different folders", list(self.drawn))
        if self.drawn_number is not None:
            check(self.drawn_number >= 1, "drawn_number", "at least 1, or null", self.drawn_number)
            check(bool(self.drawn), "drawn_number", "null without drawn", self.drawn_number)
        check(1 <= self.repeats <= 100_000, "repeats", "1 to 100,000", self.repeats)
        check(0.0 < self.crop_fill <= 1.0, "crop_fill", "a share above 0 up to 1", self.crop_fill)
        check(0.0 <= self.flip <= 1.0, "flip", "a chance from 0 to 1", self.flip)
        check(0.0 < self.epsilon < 1.0, "epsilon", "a small positive number", self.epsilon)

    def rate(self, loop: LoopSettings) -> float:
        """Return the learning rate in force, scaled where `scale_lr` is set."""
        return loop.learning_rate * (loop.batch_size * loop.accumulate if self.scale_lr else 1)


class EmbeddingConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="embedding"):
    """One learned embedding per defect type: masked textual inversion (AnoGen, arXiv:2505.09263).

    Attributes:
        vectors: Token vectors per learned embedding.
        placeholder: Word that stands for the learned embedding in prompts.
        init_word: Word whose token vector the embedding starts from.
        mask_loss: Mean of the masked squared error: over the whole image (`mean`), or over the mask (`area`).
    """

    input: ResizeSettings = ResizeSettings()
    loop: LoopSettings = LoopSettings(epochs=80, batch_size=4, learning_rate=5e-3)
    denoising: DenoisingSettings = DenoisingSettings()
    # 5e-3 is a rate per image: the training script of LDM multiplies it by the batch (`--scale_lr`).
    adaptation: AdaptationSettings = AdaptationSettings(scale_lr=True)
    vectors: int = 1
    placeholder: str = "*"
    init_word: str = "defect"
    mask_loss: Literal["mean", "area"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_learned_words(self.vectors, {"placeholder": self.placeholder, "init_word": self.init_word})


def _check_learned_words(vectors: int, words: dict[str, str]) -> None:
    check(1 <= vectors <= 32, "vectors", "1 to 32", vectors)
    for name, word in words.items():
        # A space would split it into several tokens, and the placeholder has to be one.
        is_word = bool(word) and word.isprintable() and not any(letter.isspace() for letter in word)
        check(is_word, name, "a word without spaces", word)


class InpaintingConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="inpainting"):
    """Inpainting model fine-tuned to the defects of a part (MvP-Diff).

    A text encoder that was trained with normal images alone, as that of a small base, tells defects hardly apart:
    `learn_text` lets it learn.

    Attributes:
        descriptions: Folder written by `synth describe` from the same support set; null takes the mask's bounding box
            and built-in captions.
        adapt: `lora` trains low-rank updates of the attention weights (arXiv:2106.09685), `full` the whole UNet.
        rank: Rank of the LoRA updates.
        alpha: LoRA scale: updates are multiplied by alpha / rank.
        learn_text: What is learned of the text: `frozen`, nothing; `vectors`, an embedding for each defect type, which
            stands at the beginning of its captions; `encoder`, the text encoder, as `adapt` says. Null takes `vectors`
            with a run of `train base`, else `frozen`.
        vectors: Token vectors per learned embedding.
        placeholder: Word that stands for the learned embedding in prompts.
        init_word: Word whose token vector an embedding starts from.
        text_rate: Learning rate of what is learned of the text, as a multiple of `learning_rate`; null takes 10 for
            vectors and 1 for the encoder.
        snr_gamma: Gamma of the min-SNR loss weighting (arXiv:2303.09556); 0 for none.
        mask_weight: Loss weight inside the box, added to 1.
        defect_loss: Weight of the loss inside the mask of the defect alone (DefectFill, arXiv:2503.13985; 0.5 there).
            Where this or `object_loss` is above 0, the loss of MvP-Diff is left out.
        object_loss: Weight of the loss with random boxes in place of the defect's (DefectFill; 0.2 there).
        object_ground: Loss weight outside the defect in `object_loss`.
        attention_loss: Weight of the squared difference between the mask of the defect and the attention to its
            learned embedding in the decoder (DefectFill; 0.05 there).
        noise_offset: Standard deviation of a noise offset, one number per image and channel; 0 for none.
        text_noise: Standard deviation of the noise on encoded texts, in training and in drawing (MAGIC,
            arXiv:2507.02314); 0 for none.
        text_drop: Share of images trained with the empty prompt, for classifier-free guidance.
        flip_vertical: Probability of mirroring image and mask top to bottom.
    """

    input: ResizeSettings = ResizeSettings()
    loop: LoopSettings = LoopSettings(batch_size=16, clip_norm=1.0)
    denoising: DenoisingSettings = DenoisingSettings()
    # Where it is set, the location words of captions are mirrored with the image (`mirrored_words`).
    adaptation: AdaptationSettings = AdaptationSettings(flip=0.0)
    descriptions: str | None = None
    adapt: Literal["lora", "full"] = "lora"
    rank: int = 4
    alpha: float = 4.0
    learn_text: Literal["frozen", "vectors", "encoder"] | None = None
    vectors: int = 1
    placeholder: str = "*"
    init_word: str = "defect"
    text_rate: float | None = None
    snr_gamma: float = 10.0
    mask_weight: float = 0.0
    defect_loss: float = 0.0
    object_loss: float = 0.0
    object_ground: float = 0.3
    attention_loss: float = 0.0
    noise_offset: float = 0.0
    text_noise: float = 0.0
    text_drop: float = 0.0
    flip_vertical: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.rank <= 1024, "rank", "1 to 1024", self.rank)
        check(0.0 < self.alpha < math.inf, "alpha", "a positive number", self.alpha)
        _check_learned_words(self.vectors, {"placeholder": self.placeholder, "init_word": self.init_word})
        check(
            self.text_rate is None or 0.0 < self.text_rate < math.inf, "text_rate", "a positive number", self.text_rate
        )
        losses = ("defect_loss", "object_loss", "attention_loss")
        for name in ("snr_gamma", "mask_weight", "noise_offset", "text_noise", *losses):
            check(0.0 <= getattr(self, name) < math.inf, name, "a number of at least 0", getattr(self, name))
        check(0.0 <= self.object_ground <= 1.0, "object_ground", "a weight from 0 to 1", self.object_ground)
        # Alone it would leave the defect to chance: it says where the text counts, not what is drawn there.
        has_other = self.defect_loss + self.object_loss > 0 or self.attention_loss == 0
        check(has_other, "attention_loss", "0 without defect_loss or object_loss", self.attention_loss)
        check(
            self.attention_loss == 0 or not self.denoising.gradient_checkpointing,
            "attention_loss",
            "0 with gradient_checkpointing, which forgets the attention",
            self.attention_loss,
        )
        check(0.0 <= self.text_drop < 1.0, "text_drop", "a share from 0 to below 1", self.text_drop)
        check(0.0 <= self.flip_vertical <= 1.0, "flip_vertical", "a chance from 0 to 1", self.flip_vertical)


AdaptedConfig = EmbeddingConfig | InpaintingConfig
"""Settings of the methods that adapt a base model to defects."""
