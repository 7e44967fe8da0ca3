"""What goes wrong again and again at one station: one fault costs a part, many of a kind ask for somebody who looks.

| what | then |
|---|---|
| 5 images of a view in a row of which packets are missing | state `error`, until it is acknowledged |
| 10 images of a view in a row that are too dark, bright, blurred, or equal to the one before | the same |
| more than 1 % of the last 1,000 parts missed their deadline | a warning and an event, until it is half of that |
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence

from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.parts import Reason
from flawscope.runtime.line.station.readiness import Readiness
from flawscope.runtime.shared_scoring import SharedScoring

_INCOMPLETE, _SCENE = "incomplete", "scene"
_KINDS: dict[str, str] = {"incomplete_image": _INCOMPLETE, "scene": _SCENE, "frozen": _SCENE}
_MOST = {_INCOMPLETE: 5, _SCENE: 10}
"""Images of a view in a row at which a station stops."""
_TEXTS = {
    _INCOMPLETE: "{count} incomplete images in a row; see to its network, then acknowledge",
    _SCENE: "{count} images in a row outside of the limits of its scene; see to camera and light, then acknowledge",
}
_NEVER_SEEN: frozenset[str] = frozenset({"missing_view", "lost_frame", "unreadable_image"})
"""Reasons that say nothing of the scene: no pixels were looked at."""
STUCK_S = 10.0
"""Seconds at one image after which a station counts what is at it as hanging."""
_WINDOW = 1000
_MOST_MISSED = 10
"""Missed deadlines among the last parts at which a warning begins."""


def look_at_scorings(readiness: Readiness, scorings: Sequence[SharedScoring]) -> None:
    """Look whether what scores works: an inspector of this process, or a server, which a new process would not mend.

    Args:
        readiness: Of the station.
        scorings: Those of its views.
    """
    for cause, comes_back in (("inspector", False), ("server", True)):
        ours = [scoring for scoring in scorings if scoring.comes_back is comes_back]
        stuck_s = max((scoring.stuck_s() for scoring in ours), default=0.0)
        if problem := next((scoring.problem for scoring in ours if scoring.problem), ""):
            readiness.forbid(cause, problem)
        elif stuck_s > STUCK_S:
            readiness.forbid(cause, f"has been at one image for {stuck_s:.0f} s")
        else:
            readiness.allow(cause)


class Watch:
    """Counts faults of one station. Calls come from any thread.

    Args:
        readiness: Of the station, which stops when a view has had too many faults in a row.
        journal: Where it is noted that a warning begins or ends.
        label: What the station is called in it.
    """

    def __init__(self, readiness: Readiness, journal: Recorder, label: str) -> None:
        self._readiness, self._journal, self._label = readiness, journal, label
        self._lock = threading.Lock()
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._missed: deque[bool] = deque(maxlen=_WINDOW)
        self._count = 0
        self._warning = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What somebody should see to although the station runs, in words."""
        warning = self._warning
        return (warning,) if warning else ()

    def image(self, view: str, reason: Reason) -> None:
        """Take note of what was found in an image: why it is a fault, or nothing."""
        kind = _KINDS.get(reason)
        reached = 0
        with self._lock:
            if kind != _INCOMPLETE and reason not in ("missing_view", "lost_frame"):
                self._in_a_row[view, _INCOMPLETE] = 0
            if kind is None and reason not in _NEVER_SEEN:
                self._in_a_row[view, _SCENE] = 0
            if kind is not None:
                self._in_a_row[view, kind] += 1
                if self._in_a_row[view, kind] >= _MOST[kind]:
                    reached, self._in_a_row[view, kind] = self._in_a_row[view, kind], 0
        if kind is not None and reached:
            self._readiness.forbid(f"images {view}", _TEXTS[kind].format(count=reached), hold=True)

    def verdict(self, reason: Reason) -> None:
        """Take note of a verdict that was given out: why it is a fault, or nothing."""
        with self._lock:
            if len(self._missed) == _WINDOW:
                self._count -= self._missed[0]
            self._missed.append(reason == "deadline")
            self._count += self._missed[-1]
            was, count = bool(self._warning), self._count
            if count > (_MOST_MISSED // 2 if was else _MOST_MISSED):
                self._warning = f"{count} of the last {len(self._missed)} parts missed their deadline"
            else:
                self._warning = ""
            warning = self._warning
        if bool(warning) != was:
            text = warning or f"{count} of the last {_WINDOW} parts missed their deadline"
            action = "deadlines_missed" if warning else "deadlines_kept"
            self._journal.event(action, object=self._label, reason=text)
