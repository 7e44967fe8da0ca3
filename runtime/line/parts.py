"""Parts and their verdicts: what stations decide, the journal keeps, outputs and sinks tell."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Verdict = Literal["accept", "reject", "fault"]

Reason = Literal[
    "",
    "overrun",
    "deadline",
    "missing_view",
    "lost_frame",
    "unexpected_image",
    "incomplete_image",
    "unreadable_image",
    "unlike_images",
    "scene",
    "frozen",
    "inference",
    "not_ready",
    "record",
    "interrupted",
    "stopped",
]
"""Why a part is a fault; empty for accept and reject. The order is a public format: outputs send the position."""

REASON_CODES: dict[str, int] = {reason: code for code, reason in enumerate(get_args(Reason))}
"""Reason -> its number, for registers of a PLC."""

VERDICT_CODES: dict[str, int] = {"accept": 1, "reject": 2, "fault": 3}
"""Verdict -> its number, for registers of a PLC; 0 says that there is none."""

_BADNESS: dict[str, int] = {"accept": 0, "reject": 1, "fault": 2}


class ViewRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found in one image of a part.

    Attributes:
        view: Name of the view.
        verdict: Verdict of this image alone.
        reason: Why it is a fault, empty otherwise.
        detail: The reason in words, empty where there is nothing to say.
        score: Anomaly score, raw and unbounded; None where nothing was scored.
        threshold: Threshold that the score was compared with; None where nothing was scored.
        threshold_revision: Revision of the threshold overlay, 0 for the bundle's own; None where nothing was scored.
        bundle: Digest of the bundle, SHA-256 in hex; empty where nothing was scored.
        frame_id: The camera's number of the image; None where it has none.
        source: Where the image came from: the name of its file; empty for cameras.
        image: Path of the stored image below the state folder; empty where it was not stored.
        notes: In what the image is unlike those that the bundle learned from, and warnings of its scene.
    """

    view: str
    verdict: Verdict
    reason: Reason = ""
    detail: str = ""
    score: float | None = None
    threshold: float | None = None
    threshold_revision: int | None = None
    bundle: str = ""
    frame_id: int | None = None
    source: str = ""
    image: str = ""
    notes: tuple[str, ...] = ()


class PartRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The verdict of one part, as the journal keeps it.

    Attributes:
        seq: Number of the part on this line, from 1 without a gap.
        station: Name of the station.
        part_id: What the trigger called it, empty where it gave no name.
        utc: When it was triggered, ISO 8601 with milliseconds, in UTC (`2026-11-30T03:52:59.123Z`).
        mono_ns: The same by the monotonic clock: durations and order are of this one.
        boot_id: Boot of the machine that the monotonic clock belongs to.
        generation: Number of the station's set of bundles and thresholds that decided; events say what it held.
        verdict: The worst of its views, or a fault of the part itself.
        reason: Why it is a fault, empty otherwise.
        detail: The reason in words.
        score: Score of the view that decided; None where none was scored.
        threshold: Threshold of the view that decided.
        threshold_revision: Its revision, as in `ViewRecord`.
        latency_ms: Milliseconds from the trigger until each of `collected`, `scored` and `verdict`, as far as it came.
        views: What was found in each view.
        revision: 0, or 1 where a recorded accept could not be given out in time and became a fault.
    """

    seq: int
    station: str
    part_id: str
    utc: str
    mono_ns: int
    boot_id: str
    generation: int
    verdict: Verdict
    reason: Reason = ""
    detail: str = ""
    score: float | None = None
    threshold: float | None = None
    threshold_revision: int | None = None
    latency_ms: dict[str, float] = {}
    views: tuple[ViewRecord, ...] = ()
    revision: int = 0

    def __post_init__(self) -> None:
        """Refuse a record that says two things, above all a fault that reads as an accept."""
        if (self.verdict == "fault") != (self.reason != ""):
            raise ValueError(
                f"part {self.seq}: expected a reason for a fault alone, got {self.verdict}, {self.reason!r}."
            )
        if self.verdict == "accept" and not self.views:
            raise ValueError(f"part {self.seq}: expected a view of an accepted part, got none.")
        worst = max((_BADNESS[view.verdict] for view in self.views), default=0)
        if _BADNESS[self.verdict] < worst:
            raise ValueError(f"part {self.seq}: expected a verdict no better than its worst view, got {self.verdict}.")


def worst_view(views: tuple[ViewRecord, ...]) -> ViewRecord:
    """Return the view that decides on a part: a fault before a reject before an accept.

    Of equal verdicts it is the one whose score is the highest share of its threshold, and of equal shares the first.

    Args:
        views: At least one.
    """
    return max(views, key=lambda view: (_BADNESS[view.verdict], _share(view)))


def _share(view: ViewRecord) -> float:
    if view.score is None or view.threshold is None:
        return float("-inf")
    # Scores are unbounded and thresholds may be zero or below: a difference has an order where a quotient has none.
    return view.score / view.threshold if view.threshold > 0 else view.score - view.threshold
