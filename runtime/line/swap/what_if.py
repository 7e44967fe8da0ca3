"""What another threshold would have said of parts that are on record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from flawscope.errors import ArgumentError
from flawscope.runtime.line.line_config import ViewOptions
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.station.view import Measure


class WhatIf(msgspec.Struct, frozen=True):
    """The answer.

    Attributes:
        parts: Parts that were looked at: those of the last ones that the bundle in force has scored, faults left out.
        accept: Those that the view would accept.
        reject: Those that it would reject.
        changed: Those that it would decide otherwise: `{"seq", "score", "verdict", "would_be"}`, the newest first.
        scores: Their scores, the newest first.
        threshold: The threshold in force.
        limits: `{"low", "high"}` that a threshold may have; None where the bundle states none.
    """

    parts: int
    accept: int
    reject: int
    changed: list[dict[str, Any]]
    scores: list[float]
    threshold: float | None
    limits: dict[str, float] | None


def what_if(records: Iterable[PartRecord], measure: Measure, view: ViewOptions, image: float) -> WhatIf:
    """Compare the scores of one view with another threshold, as `flawscope.runtime.decision` would.

    Args:
        records: Parts, the newest first.
        measure: By what the view decides now: scores of other bundles cannot be compared.
        view: The view.
        image: The threshold on the score.

    Raises:
        ArgumentError: If the view has no bundle.
    """
    if measure.manifest is None:
        raise ArgumentError(f"view {view.name}: expected a view with a bundle, got none. Swap one in first.")
    scores: list[float] = []
    changed: list[dict[str, Any]] = []
    rejects = 0
    for part in records:
        found = next((one for one in part.views if one.view == view.name and one.bundle == measure.bundle), None)
        if found is None or found.score is None or found.verdict == "fault":
            continue
        scores.append(found.score)
        # Strictly above, as the line decides.
        would_be = "reject" if found.score > image else "accept"
        rejects += would_be == "reject"
        if would_be != found.verdict:
            row = {"seq": part.seq, "score": found.score, "verdict": found.verdict, "would_be": would_be}
            changed.append(row)
    own = measure.manifest.thresholds_of(view.precision)
    limits = None if own is None or own.limits is None else own.limits.image
    return WhatIf(
        len(scores),
        len(scores) - rejects,
        rejects,
        changed,
        scores,
        measure.threshold,
        None if limits is None else {"low": limits.low, "high": limits.high},
    )
