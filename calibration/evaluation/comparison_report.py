"""HTML report of two bundles on the same images: which is better, by how much, and on which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawscope.calibration.evaluation import report_images
from flawscope.calibration.evaluation.comparison import NAMES, Pair, comparison_verdict
from flawscope.calibration.evaluation.evaluate import Evaluation
from flawscope.calibration.evaluation.report import REPORT
from flawscope.calibration.evaluation.report_galleries import Drawings, within_budget
from flawscope.calibration.evaluation.report_page import check_report_packages, render_page
from flawscope.calibration.evaluation.report_table import make_previews, outcome_of
from flawscope.files import write_text
from flawscope.progress import Progress, no_progress

_SHOWN = 6
OUTCOMES = ("A alone correct", "B alone correct", "both wrong", "both correct")


@dataclass(frozen=True)
class ComparedRow:
    """One image of both bundles.

    Attributes:
        row: Its row in the measurements of the second bundle.
        title: Where the image lies below the dataset's folder.
        kind: Its true type.
        scores: Score of each bundle; None for a fault.
        decisions: Decision of each; empty without thresholds.
        outcome: One of `OUTCOMES`; empty where a bundle has no thresholds.
        preview: Image and both maps as a data URI; empty where the file would grow too large.
    """

    row: int
    title: str
    kind: str
    scores: tuple[float | None, float | None]
    decisions: tuple[str, str]
    outcome: str
    preview: str


@dataclass(frozen=True)
class ComparedCard:
    """One image, and the maps of both bundles, as data URIs."""

    row: int
    title: str
    kind: str
    text: str
    images: tuple[str, str, str]
    is_wide: bool


def write_comparison(pair: Pair, folder: Path, progress: Progress = no_progress) -> Path:
    """Write `report.html` into `folder` and return its path; an older report there is replaced.

    Args:
        pair: The two evaluations.
        folder: Where the file goes.
        progress: Called after each image that is drawn.

    Raises:
        MissingExtra: If Jinja is not installed.
        StorageError: If the file cannot be written.
    """
    check_report_packages()
    path = folder / REPORT
    write_text(path, render_comparison(pair, progress))
    return path


def render_comparison(pair: Pair, progress: Progress = no_progress) -> str:
    """Return the report as HTML; the same evaluations give the same text."""
    drawings = Drawings(pair.first), Drawings(pair.second)
    places = _places(pair)
    rows = _rows(pair, places, drawings, progress)
    chosen = [row for outcome in OUTCOMES[:2] for row in [row for row in rows if row.outcome == outcome][:_SHOWN]]
    drawn = within_budget(
        lambda side, quality: [(row.outcome, _card(row, places, drawings, side, quality)) for row in chosen],
        lambda found: sum(map(len, found[1].images)),
    )
    cards = {name: [card for outcome, card in drawn if outcome == name] for name in OUTCOMES[:2]}
    context: dict[str, Any] = {
        "comparison": pair.comparison,
        "sides": (_side("A", pair.first), _side("B", pair.second)),
        "verdict": comparison_verdict(pair.comparison),
        "names": NAMES,
        "rows": rows,
        "cards": cards,
        "totals": {outcome: sum(row.outcome == outcome for row in rows) for outcome in OUTCOMES},
        "outcomes": OUTCOMES,
        "is_decided": pair.comparison.changed is not None,
        "has_masks": pair.second.measured.has_masks,
        "without_preview": sum(not row.preview for row in rows),
    }
    return render_page("comparison.html.j2", context)


def _side(letter: str, evaluation: Evaluation) -> dict[str, Any]:
    return {"letter": letter, "figures": evaluation.figures, "manifest": evaluation.manifest}


def _places(pair: Pair) -> dict[int, int]:
    """Return row of the second bundle -> row of the first, of the images that count for both."""
    first = {sample.path: row for row, sample in enumerate(pair.first.measured.samples)}
    samples = enumerate(pair.second.measured.samples)
    return {row: first[sample.path] for row, sample in samples if sample.path in first}


def _rows(
    pair: Pair, places: dict[int, int], drawings: tuple[Drawings, Drawings], progress: Progress
) -> list[ComparedRow]:
    is_decided = pair.comparison.changed is not None
    outcomes = {row: _outcome(pair, places[row], row) if is_decided else "" for row in places}
    rank = {outcome: place for place, outcome in enumerate(("", *OUTCOMES))}
    order = sorted(places, key=lambda row: (rank[outcomes[row]], row))

    def draw(row: int, side: int, quality: int) -> str:
        if not (pair.first.measured.usable[places[row]] and pair.second.measured.usable[row]):
            return ""
        parts = (drawings[1].plain(row, side), drawings[0].heat(places[row], side), drawings[1].heat(row, side))
        return report_images.side_by_side(parts, quality)

    previews = make_previews(order, draw, progress)
    sides = pair.first.figures.per_image, pair.second.figures.per_image
    rows = []
    for row in order:
        one, other = sides[0][places[row]], sides[1][row]
        rows.append(
            ComparedRow(
                row=row,
                title=other.image,
                kind=other.defect,
                scores=(one.score, other.score),
                decisions=(one.decision or "", other.decision or ""),
                outcome=outcomes[row],
                preview=previews.get(row, ""),
            )
        )
    return rows


def _outcome(pair: Pair, first: int, second: int) -> str:
    is_right = [
        outcome_of(side.measured, row) == "correct"
        # A fault stops a defective part as well: it counts as found, and a good part as rejected.
        or (outcome_of(side.measured, row) == "fault" and side.measured.samples[row].is_anomalous)
        for side, row in ((pair.first, first), (pair.second, second))
    ]
    return {(True, True): "both correct", (False, False): "both wrong", (True, False): OUTCOMES[0]}.get(
        (is_right[0], is_right[1]), OUTCOMES[1]
    )


def _card(
    row: ComparedRow, places: dict[int, int], drawings: Sequence[Drawings], side: int, quality: int
) -> ComparedCard:
    image = drawings[1].plain(row.row, side)
    parts = image, drawings[0].heat(places[row.row], side), drawings[1].heat(row.row, side)
    plain, first, second = (report_images.plain(part, quality) for part in parts)
    text = f"A: {row.decisions[0]}, B: {row.decisions[1]}"
    return ComparedCard(row.row, row.title, row.kind, text, (plain, first, second), report_images.is_wide(image))
