"""Settings of the input: image size, crop, tiles, and the images held out for calibration."""

from __future__ import annotations

from flawscope.config.setting_parts import SettingPart, check
from flawscope.imaging.images import PREPROCESSING_VERSION, Preprocessing, ResizeMode
from flawscope.imaging.tiles import Tiling


class ResizeSettings(SettingPart, frozen=True, kw_only=True):
    """Input size.

    Attributes:
        resize: Height and width in pixels after the resize.
        resize_rule: Version of the rules of resizing: 2 averages along each side that shrinks; 1, of older runs, only
            where both do.
        bits: Bits in use of images stored in 16 bit: 12 for a camera of 12 bit whose values end at 4095; null where
            they fill the 16. `data inspect` says what the largest value suggests.
    """

    resize: tuple[int, int] = (256, 256)
    resize_rule: int = PREPROCESSING_VERSION
    bits: int | None = None

    def __post_init__(self) -> None:
        rules = f"1 to {PREPROCESSING_VERSION}"
        check(1 <= self.resize_rule <= PREPROCESSING_VERSION, "resize_rule", rules, self.resize_rule)
        check(self.bits is None or 9 <= self.bits <= 16, "bits", "9 to 16, or null", self.bits)
        _ = self.preprocessing  # refuses impossible sizes

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing these settings ask for."""
        return Preprocessing(self.resize, None, self.resize_rule, bits=self.bits)

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles, or None where they are taken whole."""
        return None


class InputSettings(ResizeSettings, frozen=True, kw_only=True):
    """Input size and crop.

    Attributes:
        crop: Height and width of a centre crop after the resize; null for none.
    """

    crop: tuple[int, int] | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing these settings ask for."""
        return Preprocessing(self.resize, self.crop, self.resize_rule, bits=self.bits)


class TiledInputSettings(InputSettings, frozen=True, kw_only=True):
    """Input size, crop, and the tiles that training images are cut into.

    Attributes:
        tile: Height and width in pixels of the tiles that images are cut into, each resized to `resize`; null takes
            whole images.
    """

    tile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tiling is not None:  # refuses impossible tiles
            check(self.crop is None, "crop", "none with tiles", self.crop)

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles side by side, or None where they are taken whole."""
        # No overlap in training: each pixel of an image counts once.
        return None if self.tile is None else Tiling(self.tile, 0.0)


class LineInputSettings(TiledInputSettings, frozen=True, kw_only=True):
    """Input size, crop and tiles; export, calibration and inspection use the same as training.

    Attributes:
        tile_overlap: Share of a tile that its neighbour shows too, in inspection; training takes tiles without overlap.
        resize_mode: `stretch` scales height and width by themselves; `letterbox` keeps the aspect ratio and fills the
            rest of the input with a mirror image, for parts that are much longer than wide, or of several shapes.
    """

    tile_overlap: float = 0.25
    resize_mode: ResizeMode = "stretch"

    def __post_init__(self) -> None:
        # Before super(): the base builds `tiling`, whose own message would come first.
        check(0.0 <= self.tile_overlap <= 0.5, "tile_overlap", "a share from 0 to 0.5", self.tile_overlap)
        super().__post_init__()
        if self.resize_mode == "letterbox":
            check(self.tile is None, "tile", "none with resize_mode=letterbox", self.tile)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing these settings ask for."""
        return Preprocessing(self.resize, self.crop, self.resize_rule, self.resize_mode, self.bits)

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut in inspection, or None where they are taken whole."""
        return None if self.tile is None else Tiling(self.tile, self.tile_overlap)


class HeldOutSettings(SettingPart, frozen=True, kw_only=True):
    """Held-out normal images: never trained on, so that thresholds can be set on them.

    Attributes:
        held_out: Share of the normal training images held out for calibration.
        held_out_minimum: Fewest images held out, where there are enough.
    """

    held_out: float = 0.1
    held_out_minimum: int = 20

    def __post_init__(self) -> None:
        check(0.0 <= self.held_out < 1.0, "held_out", "a share from 0 to below 1", self.held_out)
        check(self.held_out_minimum >= 0, "held_out_minimum", "a count of at least 0", self.held_out_minimum)


EACH_ITS_OWN = -1
"""Value of `cross_fit` for as many folds as there are images."""


class CrossFitSettings(HeldOutSettings, frozen=True, kw_only=True):
    """What thresholds are set on: held-out images, or all of them by cross-fitting.

    For methods that are fitted in one pass. Trained in epochs, a detector would be trained once for every fold, and
    scores of networks from different trainings are on no common scale.

    Attributes:
        cross_fit: Folds of cross-fitting: every normal image is scored by a fit without its fold, the detector learns
            from all of them, and nothing is held out. -1: every image is a fold of its own. 0: none, images are held
            out; below 100 normal images `pipeline` and `fit` take 20 unless one of these settings is given.
    """

    cross_fit: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.cross_fit in (0, EACH_ITS_OWN) or self.cross_fit >= 2,
            "cross_fit",
            "at least 2 folds, -1 for each image its own, or 0 for none",
            self.cross_fit,
        )
