"""Settings of the feature-based detectors: PatchCore, PaDiM and STFPM."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from flawscope.config.bank_settings import BankSettings
from flawscope.config.feature_settings import (
    CoarseFeatureSettings,
    FeatureSettings,
    MapSettings,
    PatchSettings,
    Standardization,
    check_memory_budget,
)
from flawscope.config.input_settings import CrossFitSettings, HeldOutSettings, LineInputSettings
from flawscope.config.loop_settings import LoopSettings, TrainingDataSettings, check_decay
from flawscope.config.method_settings import MethodConfig, TrainedConfig
from flawscope.config.setting_parts import check
from flawscope.ranges import MAX_SIDE


class PatchcoreConfig(MethodConfig, frozen=True, kw_only=True, tag_field="method", tag="patchcore"):
    """PatchCore (arXiv:2106.08265).

    Attributes:
        coreset: Patches kept in the memory bank: a share up to 1, or a count above 1.
        max_bank: Most rows of the memory bank, whatever `coreset` asks for.
        min_bank: Fewest rows of the memory bank where `coreset` is a share: a hundredth of a few images is too little.
        neighbors: Neighbours b of the score re-weighting (equation 7); 1 turns it off.
        reweight: Whose neighbours re-weight the score: those of the nearest bank patch (`paper`, equation 7), of the
            test patch (`seed`), or `none`, which a score of several patches (`top_share`) needs.
        projection: Space of the greedy coreset selection: full (`none`), a sparse random projection of
            Johnson-Lindenstrauss size (`jl`), or as the memory budget allows (`auto`).
        selection: Patches that the coreset is chosen from: all at once, and random ones of every image where those
            exceed the memory budget (`whole`), or all in one pass within the memory budget (`streaming`), with a radius
            at most 2 (d + 1) times the smallest possible after d reductions. For more images than memory has room for.
        window: For fixed cameras: a patch is compared only with bank rows from at most so many cells of the patch grid
            away from its own place, along rows and along columns; null compares it with the whole bank. 3 is a good
            first value on a grid of 28 x 28; a part may shift by about as many cells.
        memory_budget_mb: Most memory for the patch matrix while fitting, in MiB.
    """

    AUTO_STANDARDIZE: ClassVar[Standardization] = "whiten"  # distances to a bank know no covariance of their own

    features: CoarseFeatureSettings = CoarseFeatureSettings()
    input: LineInputSettings = LineInputSettings()
    patches: PatchSettings = PatchSettings(upsample="bilinear")
    bank: BankSettings = BankSettings()
    maps: MapSettings = MapSettings()
    split: CrossFitSettings = CrossFitSettings()
    coreset: float = 0.01
    max_bank: int = 16384
    min_bank: int = 1000
    neighbors: int = 9
    reweight: Literal["paper", "seed", "none"] = "paper"
    projection: Literal["auto", "none", "jl"] = "auto"
    selection: Literal["whole", "streaming"] = "whole"
    window: int | None = None
    memory_budget_mb: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        # NaN fails every comparison, so this form refuses it too; `coreset <= 0` would let it pass.
        check(0.0 < self.coreset < math.inf, "coreset", "a share up to 1 or a count above 1", self.coreset)
        check(1 <= self.max_bank <= 1_000_000, "max_bank", "1 to 1,000,000", self.max_bank)
        check(0 <= self.min_bank <= 1_000_000, "min_bank", "0 to 1,000,000", self.min_bank)
        check(1 <= self.neighbors <= 64, "neighbors", "1 to 64", self.neighbors)
        if self.window is not None:
            check(0 <= self.window <= MAX_SIDE, "window", f"0 to {MAX_SIDE} cells, or null", self.window)
            # A place in a tile says nothing of the place in the image.
            check(self.input.tile is None, "tile", "none with window", self.input.tile)
        check_memory_budget(self.memory_budget_mb)
        # Equation 7 weighs the distance of one patch by its neighbours; a mean of many has none.
        is_one = self.bank.top_share == 0.0
        check(is_one or not self.reweights, "reweight", "none with top_share, a mean of patches", self.reweight)
        is_joined = self.bank.layers == "joined"
        check(is_joined or not self.reweights, "reweight", "none with layers=separate, several banks", self.reweight)
        # Whitened patches vary alike in every direction: their first principal component is chance.
        has_component = not self.bank.foreground or standardization(self) != "whiten"
        check(has_component, "foreground", "false with standardize=whiten", self.bank.foreground)
        if standardization(self) != "whiten":  # they would be idle
            only = "as it is without standardize=whiten"
            check(self.bank.components == 1.0, "components", only, self.bank.components)
            check(self.bank.shrinkage == 0.0, "shrinkage", only, self.bank.shrinkage)

    @property
    def reweights(self) -> bool:
        """Whether the score is re-weighted by neighbours."""
        return self.reweight != "none" and self.neighbors > 1  # one neighbour is nothing to weigh against

    @property
    def pools(self) -> bool:
        """Whether patches are averages of neighbourhoods."""
        return self.bank.pool

    @property
    def unit(self) -> bool:
        """Whether patches are divided by their length."""
        return self.bank.metric == "cosine"

    @property
    def banks(self) -> int:
        """Number of memory banks: one for each stage of each scale where they are kept apart."""
        if self.bank.layers == "joined":
            return 1
        return len(self.features.stages or self.features.AUTO_STAGES) * len(self.patches.scales)


Factors = Literal["auto", "float16", "float32"]
"""Numbers of the factors of PaDiM's inverse covariances."""


class PadimConfig(MethodConfig, frozen=True, kw_only=True, tag_field="method", tag="padim"):
    """PaDiM (arXiv:2011.08785).

    Attributes:
        channels: Feature channels kept; the selection is stored in the run.
        reduction: How channels are reduced, by the seed: `sample` picks them at random (the paper), `ortho` projects
            all of them onto random orthonormal directions (arXiv:2105.14737).
        regularization: Added to the diagonal of every covariance matrix.
        factors: Numbers of the inverse covariances' factors: `float16` has half the bytes of `float32`; `auto` takes it
            where no distance changes by more than a hundredth. The run says which was taken and how far it can be off.
    """

    pools: ClassVar[bool] = False
    unit: ClassVar[bool] = False  # a covariance of directions is not what the paper has
    banks: ClassVar[int] = 1
    AUTO_STANDARDIZE: ClassVar[Standardization] = "scale"  # every position is whitened by its own covariance

    features: FeatureSettings = FeatureSettings()
    input: LineInputSettings = LineInputSettings()
    patches: PatchSettings = PatchSettings()
    maps: MapSettings = MapSettings()
    split: CrossFitSettings = CrossFitSettings()
    channels: int = 100
    reduction: Literal["sample", "ortho"] = "sample"
    regularization: float = 0.01
    factors: Factors = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.channels <= 4096, "channels", "1 to 4096", self.channels)
        check(0.0 < self.regularization < math.inf, "regularization", "a positive number", self.regularization)


FittedConfig = PatchcoreConfig | PadimConfig
"""Settings of the methods that are fitted in one pass; their bundles have a memory bank."""


def standardization(config: FittedConfig) -> Standardization:
    """Return the setting `standardize`, with `auto` resolved.

    For a pretrained backbone it is `none`. The channels of the scattering network have no learned scale, so the
    method's own choice is taken: PatchCore needs whitened channels for its distances, PaDiM whitens every position
    itself.
    """
    if config.patches.standardize != "auto":
        return config.patches.standardize
    return config.AUTO_STANDARDIZE if config.features.backbone == "scattering" else "none"


class StfpmConfig(TrainedConfig, frozen=True, kw_only=True, tag_field="method", tag="stfpm"):
    """Student-teacher feature pyramid matching (arXiv:2103.04257).

    The teacher is the backbone with its weights, the student the same architecture from a random start.

    Attributes:
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        loss: `paper`: half the squared distance at each position (equation 3); `seed`: the whole, as if the learning
            rate were doubled.
        align: Measure where the features of each stage lie in the image, and draw the maps of the stages accordingly;
            off: every stage is taken as centred on the image.
    """

    features: FeatureSettings = FeatureSettings(backbone="resnet18")
    input: LineInputSettings = LineInputSettings()
    maps: MapSettings = MapSettings(sigma=0.0)
    split: HeldOutSettings = HeldOutSettings()
    loop: LoopSettings = LoopSettings(batch_size=32, learning_rate=0.4)
    data: TrainingDataSettings = TrainingDataSettings()
    momentum: float = 0.9
    weight_decay: float = 1e-4
    loss: Literal["paper", "seed"] = "paper"
    align: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0.0 <= self.momentum < 1.0, "momentum", "0 to below 1", self.momentum)
        check_decay(self.weight_decay)
        backbone = self.features.backbone
        # The student has to be the same network with trainable weights; scattering has none.
        check(backbone != "scattering", "backbone", "a network that can be trained, with weights", backbone)
