"""Settings of DRAEM and DeSTSeg."""

from __future__ import annotations

from flawscope.config.feature_settings import FeatureSettings
from flawscope.config.loop_settings import LoopSettings, check_decay
from flawscope.config.setting_parts import check
from flawscope.config.supervised_settings import LabelledConfig, LabelledSettings
from flawscope.ranges import MOST_TOP

_MOST_WIDTH = 1024
_MOST_DEPTH = 8


class DraemConfig(LabelledConfig, frozen=True, kw_only=True, tag_field="method", tag="draem"):
    """DRAEM (arXiv:2108.07610): one network rebuilds the image without its defect, a second compares the two.

    Attributes:
        width: Channels of the network that rebuilds, at the full size; they double with every halving, up to eight
            times as many. Time and memory grow with its square: on a CPU take 16.
        depth: Halvings of the network that rebuilds.
        segmentation_width: Channels of the network that compares, at the full size.
        segmentation_depth: Halvings of the network that compares.
        score_window: The score of an image is the largest mean of its map in a window of so many pixels, odd.
    """

    # The steps of the published 700 epochs over some 250 images, with rates that drop at the same parts of them.
    loop: LoopSettings = LoopSettings(epochs=448, batch_size=16, learning_rate=1e-4, schedule="drops", patience=50)
    labelled: LabelledSettings = LabelledSettings(procedural=True)
    width: int = 128
    depth: int = 4
    segmentation_width: int = 64
    segmentation_depth: int = 5
    score_window: int = 21

    def __post_init__(self) -> None:
        super().__post_init__()
        shortest = min(self.preprocessing.size)
        for prefix in ("", "segmentation_"):
            width, depth = getattr(self, f"{prefix}width"), getattr(self, f"{prefix}depth")
            check(1 <= width <= _MOST_WIDTH, f"{prefix}width", f"1 to {_MOST_WIDTH}", width)
            check(1 <= depth <= _MOST_DEPTH, f"{prefix}depth", f"1 to {_MOST_DEPTH}", depth)
            # At the deepest level one pixel has to be left.
            fits = shortest >> depth >= 1
            check(fits, f"{prefix}depth", f"at most {shortest.bit_length() - 1} halvings of {shortest} pixels", depth)
        is_odd = 1 <= self.score_window <= 255 and self.score_window % 2 == 1
        check(is_odd, "score_window", "an odd number, 1 to 255", self.score_window)


class DestsegConfig(LabelledConfig, frozen=True, kw_only=True, tag_field="method", tag="destseg"):
    """DeSTSeg (arXiv:2211.11317): a student denoises the features of a frozen teacher, a head segments by both.

    Attributes:
        width: Channels of the student at stride 4; they double with every halving, up to eight times as many.
        blocks: Residual blocks of the student at every stride.
        head_width: Channels of the head.
        residual_rate: Learning rate of the head's residual blocks; `learning_rate` is the student's.
        head_rate: Learning rate of the rest of the head.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        top: The score of an image is the mean of so many pixels of its map, the highest ones.
    """

    features: FeatureSettings = FeatureSettings(backbone="resnet18")
    loop: LoopSettings = LoopSettings(epochs=200, batch_size=32, learning_rate=0.4, patience=50)
    labelled: LabelledSettings = LabelledSettings(procedural=True)
    gamma: float = 4.0
    width: int = 64
    blocks: int = 2
    head_width: int = 256
    residual_rate: float = 0.1
    head_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    top: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.width <= _MOST_WIDTH, "width", f"1 to {_MOST_WIDTH}", self.width)
        check(1 <= self.blocks <= 8, "blocks", "1 to 8", self.blocks)
        check(1 <= self.head_width <= _MOST_WIDTH, "head_width", f"1 to {_MOST_WIDTH}", self.head_width)
        for name in ("residual_rate", "head_rate"):
            rate = getattr(self, name)
            check(0.0 < rate <= 100.0, name, "a positive number up to 100", rate)
        check(0.0 <= self.momentum < 1.0, "momentum", "0 to below 1", self.momentum)
        check_decay(self.weight_decay)
        height, width = self.preprocessing.size
        most = min(MOST_TOP, height * width)
        check(1 <= self.top <= most, "top", f"1 to {most} pixels", self.top)
