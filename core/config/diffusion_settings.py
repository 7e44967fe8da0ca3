"""Settings of the diffusion detectors, and of the autoencoder of latent diffusion."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.feature_settings import CoarseFeatureSettings, FeatureSettings, MapSettings
from flawscope.config.input_settings import HeldOutSettings, LineInputSettings, TiledInputSettings
from flawscope.config.loop_settings import DenoisingSettings, LoopSettings, TrainingDataSettings, check_betas
from flawscope.config.method_settings import TrainedConfig
from flawscope.config.setting_parts import SettingPart, check
from flawscope.diffusion.schedule import Sampling


class ReconstructionSettings(SettingPart, frozen=True, kw_only=True):
    """Reconstruction by diffusion.

    Attributes:
        start: Noise level at which the reconstruction starts, 1 to 1000; more hides more of the image.
        steps: Denoising steps of a reconstruction, one network call each.
        spacing: Timestep spacing from 0 to `start`: `leading` (as in both references), `trailing` or `linspace`.
        eta: Stochasticity of the sampling: 0 is DDIM, 1 is DDPM.
        level: Noise added to the image: that of the `first` timestep, or that of `start`, as both references add it
            although their first call is given another timestep.
        noise_seed: Seed of the sampling noise, which is the same for every image and stored in the bundle.
    """

    start: int = 250
    steps: int = 25
    spacing: Literal["leading", "trailing", "linspace"] = "leading"
    eta: float = 0.0
    level: Literal["first", "start"] = "first"
    noise_seed: int = 0

    def __post_init__(self) -> None:
        check(self.noise_seed >= 0, "noise_seed", "a number of at least 0", self.noise_seed)


class AugmentationSettings(SettingPart, frozen=True, kw_only=True):
    """Augmentation of training images, drawn anew at every access.

    Attributes:
        flip: Mirror left to right with probability 0.5.
        rotate: Largest rotation, in degrees.
        color_jitter: Largest relative change of brightness, contrast and saturation.
    """

    flip: bool = False
    rotate: float = 0.0
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        check(0.0 <= self.rotate <= 180.0, "rotate", "0 to 180 degrees", self.rotate)
        check(0.0 <= self.color_jitter <= 1.0, "color_jitter", "0 to 1", self.color_jitter)


class DdadConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="ddad"):
    """Reconstruction in pixels, conditioned on the image: DDAD (arXiv:2305.15956) and Diffusion-Based-AD.

    Attributes:
        widths: UNet channels per level, finest first; null takes (128, 128, 256, 384, 512) up to 128 pixels and (128,
            128, 256, 256, 512, 512) above.
        layers: Residual blocks per level.
        attention: Resolutions with self-attention: sides of the feature maps, in pixels.
        head_width: Channels per attention head.
        dropout: Dropout rate in training.
        loss: Squared error of the predicted noise: its `mean`, or its `sum` per image.
        noise: Noise of training and sampling: `gaussian`, or `simplex` (AnoDDPM, 2022).
        conditioning: How the input image guides the sampling: `ddad` corrects the predicted noise towards it, `blend`
            mixes it in after each step, `none` does neither.
        weight: Weight of the conditioning; null takes 3 for `ddad` and 0.1 for `blend`. A `blend` of 1 copies the
            input.
        clip: Clip predictions of the clean image to [-1, 1].
        pixel_map: Pixel difference: `squared` takes the largest squared difference of the channels, `absolute` the mean
            absolute difference.
        pixel_weight: Weight of the pixel map in the anomaly map; 0 leaves it out.
        feature_weight: Weight of the feature map in the anomaly map; 0 leaves it out.
        smoothing: Side of the mean filter over features, odd; 1 for none.
        map_scale: Normalization of both maps, measured on normal validation images: by the 99.9 % `quantile` of their
            pixels, or by their `max`.
        pixel_threshold: Scale of the pixel map; null measures it as `map_scale` says.
        feature_threshold: Scale of the feature map; null measures it as `map_scale` says.
        extractor: Fine-tuning of the backbone before it compares: `none`; `autoencoder`, a decoder rebuilds the image
            from its features; `diffusion`, a decoder rebuilds the reconstruction; `adaptation`, DDAD's own, features of
            reconstruction and image agree and stay near the pretrained ones.
        extractor_epochs: Epochs of the fine-tuning.
        extractor_rate: Learning rate of the fine-tuning.
        extractor_weight: λ of `adaptation`: weight of staying near the pretrained features.
        extractor_guidance: Weight of the conditioning in the reconstructions that `adaptation` learns from.
    """

    features: CoarseFeatureSettings = CoarseFeatureSettings(backbone="wide_resnet101_2")
    input: LineInputSettings = LineInputSettings()
    maps: MapSettings = MapSettings()
    split: HeldOutSettings = HeldOutSettings()
    loop: LoopSettings = LoopSettings(
        epochs=1000, schedule="cosine", warmup_steps=500, preview_every=100, checkpoint_every=10
    )
    data: TrainingDataSettings = TrainingDataSettings()
    denoising: DenoisingSettings = DenoisingSettings(weight_decay=1e-6, betas=(0.95, 0.999))
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    widths: tuple[int, ...] | None = None
    layers: int = 2
    attention: tuple[int, ...] = (16,)
    head_width: int = 8
    dropout: float = 0.0
    loss: Literal["mean", "sum"] = "mean"
    noise: Literal["gaussian", "simplex"] = "gaussian"
    conditioning: Literal["ddad", "blend", "none"] = "ddad"
    weight: float | None = None
    clip: bool = True
    pixel_map: Literal["squared", "absolute"] = "squared"
    pixel_weight: float = 0.7
    feature_weight: float = 0.7
    smoothing: int = 3
    map_scale: Literal["quantile", "max"] = "quantile"
    pixel_threshold: float | None = None
    feature_threshold: float | None = None
    extractor: Literal["none", "autoencoder", "diffusion", "adaptation"] = "none"
    extractor_epochs: int = 30
    extractor_rate: float = 1e-4
    extractor_weight: float = 0.1
    extractor_guidance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.unet_widths, self.preprocessing.size)
        check(1 <= self.layers <= 8, "layers", "1 to 8", self.layers)
        check(1 <= self.head_width <= 1024, "head_width", "1 to 1024", self.head_width)
        check(0.0 <= self.dropout < 1.0, "dropout", "a share from 0 to below 1", self.dropout)
        # Odd: the filter has a centre pixel and does not shift the features.
        check(self.smoothing in range(1, 32, 2), "smoothing", "an odd side from 1 to 31", self.smoothing)
        for name in ("pixel_weight", "feature_weight", "extractor_weight", "extractor_guidance"):
            check(0.0 <= getattr(self, name) < math.inf, name, "a number of at least 0", getattr(self, name))
        # Both at 0 would make every map 0 and every part normal.
        check(self.pixel_weight + self.feature_weight > 0, "pixel_weight", "above 0 if feature_weight is 0", 0)
        for name in ("pixel_threshold", "feature_threshold"):
            value = getattr(self, name)
            check(value is None or 0.0 < value < math.inf, name, "a positive number", value)
        check(1 <= self.extractor_epochs <= 1_000_000, "extractor_epochs", "1 to 1,000,000", self.extractor_epochs)
        check(0.0 < self.extractor_rate < math.inf, "extractor_rate", "a positive number", self.extractor_rate)
        # Its filters have no parameters that could be trained.
        is_fixed = self.features.backbone == "scattering"
        check(
            not (is_fixed and self.extractor != "none"),
            "extractor",
            "none for the backbone scattering, whose filters are fixed",
            self.extractor,
        )
        # The rules of steps and start stand once, in `Sampling`; building it here reports them before any training.
        _ = self.sampling  # refuses impossible steps

    @property
    def unet_widths(self) -> tuple[int, ...]:
        """Channels of the UNet per level."""
        if self.widths is not None:
            return self.widths
        small = max(self.preprocessing.size) <= 128
        return (128, 128, 256, 384, 512) if small else (128, 128, 256, 256, 512, 512)

    @property
    def sampling(self) -> Sampling:
        """The reconstruction that these settings ask for."""
        weight = self.weight
        if weight is None:
            # The weights of the two references, as in the presets ddad-paper and dbad-seed.
            weight = {"ddad": 3.0, "blend": 0.1, "none": 0.0}[self.conditioning]
        return Sampling(
            start=self.reconstruction.start,
            steps=self.reconstruction.steps,
            spacing=self.reconstruction.spacing,
            eta=self.reconstruction.eta,
            level=self.reconstruction.level,
            clip=self.clip,
            conditioning=self.conditioning,
            weight=weight,
            noise=self.noise,
            seed=self.reconstruction.noise_seed,
        )


class AutoencoderConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="autoencoder"):
    """The autoencoder that latent diffusion works in: AutoencoderKL (arXiv:2112.10752).

    `backbone` and `stages` are those of the perceptual loss, a distance of normalised features (arXiv:1801.03924
    without its learned weights); `scattering` leaves it out.

    Attributes:
        base: Folder with an AutoencoderKL in the format of diffusers, or a Stable Diffusion folder (its `vae`), to
            start from; null starts at random.
        widths: Channels per level, finest first; each level after the first halves the sides. Used only without `base`.
        layers: Residual blocks per level. Used only without `base`.
        latent: Latent channels. Used only without `base`.
        normalization: Scaling of images: `signed` to [-1, 1] (Stable Diffusion), `imagenet` by mean and standard
            deviation of ImageNet (DiAD).
        perceptual: Weight of the perceptual loss.
        kl: Weight of the KL divergence from the standard normal distribution.
        betas: Betas of Adam.
        gradient_checkpointing: Recompute activations in the backward pass (arXiv:1604.06174): less memory, more time.
    """

    features: FeatureSettings = FeatureSettings()
    input: TiledInputSettings = TiledInputSettings()
    # No minimum: an autoencoder sets no threshold. The share stays, so that with many images it holds out those that
    # `dsad` holds out, whose thresholds would else come from images that the autoencoder knows.
    split: HeldOutSettings = HeldOutSettings(held_out_minimum=0)
    loop: LoopSettings = LoopSettings(batch_size=4, accumulate=8, learning_rate=1.8e-4)
    data: TrainingDataSettings = TrainingDataSettings()
    base: str | None = None
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent: int = 4
    normalization: Literal["signed", "imagenet"] = "signed"
    perceptual: float = 1.0
    kl: float = 1e-6
    # As latent diffusion trains its autoencoders; its weight of the KL divergence is 1e-6 too.
    betas: tuple[float, float] = (0.5, 0.9)
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_widths(self.widths, self.preprocessing.size)
        check(1 <= self.layers <= 8, "layers", "1 to 8", self.layers)
        check(1 <= self.latent <= 64, "latent", "1 to 64", self.latent)
        for name in ("perceptual", "kl"):
            check(0.0 <= getattr(self, name) < math.inf, name, "a number of at least 0", getattr(self, name))
        check_betas(self.betas)


class DsadConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="dsad"):
    """Reconstruction in latents, guided by meaning and sketch of the image: DSAD, and DiAD (arXiv:2312.06607).

    Attributes:
        autoencoder: Run of `train autoencoder`, or a folder with an AutoencoderKL in the format of diffusers; null
            takes the `vae` of `base`. One of the two is needed.
        base: Stable Diffusion folder in the format of diffusers to start from; null starts at random with `widths`.
        widths: Channels of the denoising UNet per level, finest first. Used only without `base`.
        layers: Residual blocks per level. Used only without `base`.
        heads: Attention heads. Used only without `base`.
        context: Width of the text embedding, that of the empty prompt. Used only without `base`.
        hint_widths: Channels of the encoder of the guiding image; each level after the first halves the sides, down to
            those of the latents.
        normalization: Scaling of images the autoencoder was trained with: `signed` or `imagenet`.
        fusion: Feature fusion before the zero convolutions (`live`, gradients flow from the first step) or after them
            (`diad`, as the public code, where none ever reaches the fusion).
        control: Skip connections that are guided: the `coarse` ones of the last level, or all (`full`).
        train_decoder: Train the decoder of the denoising UNet too, as DiAD does; if false, only the guidance. Without
            `base` the whole UNet is trained.
        sketch: Edge sketch as a second condition: by `sobel`, by `canny`, or `none`.
        sketch_size: Side in pixels to which a sketch is reduced, so that it cannot carry a defect's fine edges.
        sketch_drop: Share of training images without their sketch.
        sketch_corrupt: Share of training images in whose sketch random boxes are erased or taken from another.
        pooling: Successive 8 x 8 mean filters on the anomaly map before its maximum is the score.
    """

    features: FeatureSettings = FeatureSettings(backbone="resnet50")
    input: LineInputSettings = LineInputSettings()
    maps: MapSettings = MapSettings(sigma=5.0)
    split: HeldOutSettings = HeldOutSettings()
    loop: LoopSettings = LoopSettings(
        epochs=1000, batch_size=12, accumulate=4, learning_rate=1e-5, preview_every=25, checkpoint_every=25
    )
    data: TrainingDataSettings = TrainingDataSettings()
    denoising: DenoisingSettings = DenoisingSettings()
    reconstruction: ReconstructionSettings = ReconstructionSettings(start=1000, steps=10)
    augmentation: AugmentationSettings = AugmentationSettings()
    autoencoder: str | None = None
    base: str | None = None
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    heads: int = 8
    context: int = 768
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    normalization: Literal["signed", "imagenet"] = "signed"
    fusion: Literal["live", "diad"] = "live"
    control: Literal["coarse", "full"] = "coarse"
    train_decoder: bool = True
    sketch: Literal["sobel", "canny", "none"] = "sobel"
    sketch_size: int = 64
    sketch_drop: float = 0.1
    sketch_corrupt: float = 0.5
    pooling: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.widths) >= 2 and min(self.widths) >= 8, "widths", "two or more, from 8", list(self.widths))
        check(len(self.hint_widths) >= 1 and min(self.hint_widths) >= 1, "hint_widths", "from 1", self.hint_widths)
        check(1 <= self.layers <= 8, "layers", "1 to 8", self.layers)
        check(self.heads >= 1 and self.widths[0] % self.heads == 0, "heads", "a divisor of the widths", self.heads)
        check(1 <= self.context <= 4096, "context", "1 to 4096", self.context)
        check(8 <= self.sketch_size <= 4096, "sketch_size", "8 to 4096 pixels", self.sketch_size)
        for name in ("sketch_drop", "sketch_corrupt"):
            check(0.0 <= getattr(self, name) <= 1.0, name, "a share from 0 to 1", getattr(self, name))
        check(0 <= self.pooling <= 16, "pooling", "0 to 16", self.pooling)
        _ = self.sampling  # refuses impossible steps

    @property
    def sampling(self) -> Sampling:
        """The reconstruction that these settings ask for."""
        return Sampling(
            # The noise schedule Stable Diffusion was trained with: its UNet knows no other, so it cannot be set.
            betas="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            start=self.reconstruction.start,
            steps=self.reconstruction.steps,
            spacing=self.reconstruction.spacing,
            # `steps_offset` of Stable Diffusion; with it goes `final="first"`, diffusers' `set_alpha_to_one=False`.
            offset=1,
            eta=self.reconstruction.eta,
            level=self.reconstruction.level,
            final="first",
            # Latents are not bounded by [-1, 1]: clipping would cut their tails.
            clip=False,
            seed=self.reconstruction.noise_seed,
        )


def check_widths(widths: tuple[int, ...], size: tuple[int, int]) -> None:
    """Raise ArgumentError unless there are two or more levels and the image can be halved between them."""
    check(len(widths) >= 2 and min(widths) >= 4, "widths", "two or more numbers from 4", list(widths))
    # Skip connections join levels of equal size: an odd side would not come back after halving and doubling.
    halvings = 2 ** (len(widths) - 1)
    fits = all(side % halvings == 0 and side // halvings >= 2 for side in size)
    check(fits, "resize", f"sides that are multiples of {halvings}, for {len(widths)} levels of widths", list(size))
