"""Settings of LafitE."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.diffusion_settings import ReconstructionSettings
from flawscope.config.feature_settings import FineFeatureSettings, MapSettings
from flawscope.config.input_settings import HeldOutSettings, LineInputSettings
from flawscope.config.loop_settings import DenoisingSettings, LoopSettings, TrainingDataSettings
from flawscope.config.method_settings import TrainedConfig
from flawscope.config.setting_parts import check
from flawscope.diffusion.feature_editing import MOST_EDITED
from flawscope.diffusion.schedule import Sampling


class LafiteConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="lafite"):
    """LafitE (arXiv:2307.08059): features are edited towards normal ones and denoised; their change is anomalous.

    Attributes:
        grid: Rows and columns that all stages are resampled to, side by side as one feature.
        editing: Every patch is replaced by a weighted mean of the rows of a bank of normal patches nearest to it.
        diffusion: A denoiser is trained, and features are noised and denoised. Without it nothing is trained: the
            score is the distance to the edited features.
        neighbors: Rows that take the place of a patch.
        temperature: Of their weights, in squared distance for each channel; the smaller, the more the nearest counts.
            From about 1 on weights fall linearly with the squared distance.
        mix: Share of the edited features in what is denoised, the rest being the image's own.
        coreset: Patches kept in the bank: a share up to 1, or a count above 1.
        max_bank: Most rows of the bank, whatever `coreset` asks for.
        candidates: Most patches that the bank is chosen from, the same number from every image at random: the time of
            the choice grows with their product with the rows.
        noise_schedule: Noise levels of training and denoising: `cosine` (arXiv:2102.09672) or `linear`.
        widths: Channels of the denoiser per level, finest first; each level after the first halves the sides. Below the
            channels of the features the first cannot carry all of the noise.
        layers: Residual blocks per level.
        attention: Sides of the grid at which levels have self-attention.
        head_width: Channels per attention head.
        score_window: The score of an image is the largest mean of its map in a window of so many pixels.
    """

    # Strides 2 to 16, as UniAD takes them (arXiv:2206.03687).
    features: FineFeatureSettings = FineFeatureSettings(backbone="efficientnet_b4")
    input: LineInputSettings = LineInputSettings(resize=(224, 224))
    maps: MapSettings = MapSettings()
    split: HeldOutSettings = HeldOutSettings()
    loop: LoopSettings = LoopSettings(epochs=100, batch_size=16, schedule="drop")
    data: TrainingDataSettings = TrainingDataSettings()
    denoising: DenoisingSettings = DenoisingSettings(weight_decay=1e-4)
    reconstruction: ReconstructionSettings = ReconstructionSettings(start=300, steps=5)
    grid: tuple[int, int] = (32, 32)
    editing: bool = True
    diffusion: bool = True
    neighbors: int = 5
    temperature: float = 1.0
    mix: float = 1.0
    coreset: float = 0.1
    max_bank: int = 8192
    candidates: int = 65536
    noise_schedule: Literal["cosine", "linear"] = "cosine"
    widths: tuple[int, ...] = (128, 192, 256)
    layers: int = 1
    attention: tuple[int, ...] = (8,)
    head_width: int = 32
    score_window: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.preprocessing.size
        halvings = 2 ** (len(self.widths) - 1)
        check(len(self.widths) >= 2 and min(self.widths) >= 4, "widths", "two or more numbers from 4", self.widths)
        # Skip connections join levels of equal size: an odd side would not come back after halving and doubling.
        fits = all(
            side % halvings == 0 and halvings <= side <= most for side, most in zip(self.grid, size, strict=True)
        )
        expected = f"multiples of {halvings}, for {len(self.widths)} levels of widths, up to the input's {list(size)}"
        check(fits, "grid", expected, list(self.grid))
        check(self.editing or self.diffusion, "editing", "true if diffusion is false", self.editing)
        check(1 <= self.neighbors <= MOST_EDITED, "neighbors", f"1 to {MOST_EDITED}", self.neighbors)
        check(0.0 < self.temperature < math.inf, "temperature", "a positive number", self.temperature)
        check(0.0 < self.mix <= 1.0, "mix", "a share above 0 and up to 1; editing=false edits nothing", self.mix)
        check(0.0 < self.coreset < math.inf, "coreset", "a share up to 1 or a count above 1", self.coreset)
        check(1 <= self.max_bank <= 1_000_000, "max_bank", "1 to 1,000,000", self.max_bank)
        check(1 <= self.candidates <= 100_000_000, "candidates", "1 to 100,000,000", self.candidates)
        check(1 <= self.layers <= 8, "layers", "1 to 8", self.layers)
        check(1 <= self.head_width <= 1024, "head_width", "1 to 1024", self.head_width)
        check(1 <= self.score_window <= min(size), "score_window", f"1 to {min(size)} pixels", self.score_window)
        # The rules of steps and start stand once, in `Sampling`; building it here reports them before any training.
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """The denoising that these settings ask for, whether or not `diffusion` is on."""
        return Sampling(
            betas=self.noise_schedule,
            start=self.reconstruction.start,
            steps=self.reconstruction.steps,
            spacing=self.reconstruction.spacing,
            eta=self.reconstruction.eta,
            level=self.reconstruction.level,
            # Features are not bounded by [-1, 1].
            clip=False,
            seed=self.reconstruction.noise_seed,
        )
