"""Settings of the detectors that learn from labelled defects: where the defects come from."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.setting_parts import SettingPart, check
from flawscope.errors import ArgumentError

DefectSourceName = Literal["support", "drawn", "train", "procedural"]
"""Sources of labelled defects, by the settings that name them."""


class LabelledSettings(SettingPart, frozen=True, kw_only=True):
    """Labelled defects to learn from, in any mixture of four sources.

    Shares are parts of the anomalous images of a batch, and count in relation to each other: 1 and 3 are a quarter and
    three quarters. A source without a share of its own counts as 1.

    Attributes:
        support: Support set of real defects: folder written by `synth support`; null for none.
        drawn: Folders of drawn defects, written by `synth generate`, `synth paste` or `synth perlin`.
        train_defects: Learn from the anomalous images with masks in the dataset's own train split.
        procedural: Draw anomalies anew for each batch (Perlin noise, as DRAEM does).
        defects: Defect types to learn, as DEFECT or CATEGORY/DEFECT; empty for all that the sources have. Procedural
            anomalies are of no type.
        support_share: Share of support images; null for 1.
        drawn_share: Share of drawn images; null for 1.
        train_share: Share of anomalous training images; null for 1.
        procedural_share: Share of procedural anomalies; null for 1.
        weak_tau: Use the boxes of drawn images as labels, and count pixels inside only where the probability of a
            defect is above this (AnoGen: 0.1); null uses their precise masks. Masks of real defects always count whole.
    """

    support: str | None = None
    drawn: tuple[str, ...] = ()
    train_defects: bool = False
    procedural: bool = False
    defects: tuple[str, ...] = ()
    support_share: float | None = None
    drawn_share: float | None = None
    train_share: float | None = None
    procedural_share: float | None = None
    weak_tau: float | None = None

    def __post_init__(self) -> None:
        for name, is_named in self._named().items():
            share = getattr(self, f"{name}_share")
            if share is None:
                continue
            check(is_named, f"{name}_share", f"none without {_SETTING_OF[name]}", share)
            # A share of nothing would be a source that is named and never learned from.
            check(0.0 < share < math.inf, f"{name}_share", "a number above 0 (leave the source out instead)", share)
        check(len(set(self.drawn)) == len(self.drawn), "drawn", "different folders", list(self.drawn))
        if self.weak_tau is not None:
            check(0.0 <= self.weak_tau < 1.0, "weak_tau", "a probability from 0 to below 1", self.weak_tau)
            check(bool(self.drawn), "weak_tau", "null without drawn, whose boxes it is for", self.weak_tau)

    def _named(self) -> dict[DefectSourceName, bool]:
        return {
            "support": self.support is not None,
            "drawn": bool(self.drawn),
            "train": self.train_defects,
            "procedural": self.procedural,
        }

    @property
    def shares(self) -> dict[DefectSourceName, float]:
        """Share of each source that is named, in the order of the settings; together 1."""
        parts = {name: getattr(self, f"{name}_share") or 1.0 for name, is_named in self._named().items() if is_named}
        return {name: part / sum(parts.values()) for name, part in parts.items()}

    def check_named(self) -> None:
        """Raise ArgumentError unless there is a source.

        Not in `__post_init__`: settings are complete without any, so that they can be listed and merged.
        """
        if not self.shares:
            raise ArgumentError(
                "labelled defects: expected at least one source, got none. Name a support set (support=DIR), drawn "
                "defects (drawn=DIR), or set train_defects=true or procedural=true."
            )


_SETTING_OF: dict[DefectSourceName, str] = {
    "support": "support",
    "drawn": "drawn",
    "train": "train_defects",
    "procedural": "procedural",
}
