"""What a training chooses by the images: the method, the size of the input, and whether images are held out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flawscope.config import EACH_ITS_OWN, CrossFitSettings, MethodConfig, change_settings, find_part
from flawscope.datasets import Dataset
from flawscope.datasets.advice import Advice, advise
from flawscope.training.run_notes import FEW_FOR_A_SPLIT

_FOLDS = 20
"""Folds of cross-fitting where images are few; of fewer images each is its own."""


def choose_method(dataset: Dataset, layers: Sequence[Mapping[str, Any]], defect_px: float | None = None) -> Advice:
    """Return the method and the input that suit the images, for who asked for `auto`.

    Args:
        dataset: Some of its normal images and masks are looked at, never a score.
        layers: Settings that were asked for, later ones win: the reasons depend on the backbone, and an input size that
            was asked for is left as it is.
        defect_px: Thickness in pixels of the smallest defect that has to be found; None measures the masks.

    Raises:
        ArgumentError: If `defect_px` is not a positive number.
    """
    backbone = next((layer["backbone"] for layer in reversed(layers) if "backbone" in layer), "scattering")
    advice = advise(dataset, backbone=str(backbone), defect_px=defect_px)
    if any({"resize", "tile", "resize_mode"} & layer.keys() for layer in layers):
        return advice.without_size()
    return advice


def cross_fit_if_few(
    config: MethodConfig, dataset: Dataset, given: Collection[str]
) -> tuple[MethodConfig, tuple[str, ...]]:
    """Return settings with cross-fitting where images are few, and a note that says so; else what was given.

    Args:
        config: Settings of the method.
        dataset: Its normal training images are counted.
        given: Names of the settings that were asked for: who asks for a split gets it.
    """
    count = len(dataset.train_good)
    is_asked_for = not {"cross_fit", "held_out", "held_out_minimum"}.isdisjoint(given)
    if is_asked_for or find_part(config, CrossFitSettings) is None or not 3 <= count < FEW_FOR_A_SPLIT:
        return config, ()
    # Not 5: `benchmarks/few_images.py` shows that to be too careful, above all for PaDiM, whose fits on four fifths of
    # the images score new ones much higher than the fit on all.
    folds = _FOLDS if count > _FOLDS else EACH_ITS_OWN
    each = f"in {_FOLDS} folds" if folds == _FOLDS else "each image its own fold"
    note = (
        f"{count} normal images are fewer than {FEW_FOR_A_SPLIT}: cross-fitted, {each}, so that the detector learns "
        "from all of them and thresholds come from all of them. --set held_out=0.1 holds images out instead."
    )
    return change_settings(config, {"cross_fit": folds}), (note,)
