"""Images that are sent: the source is there while the line is, and a part that a PLC triggers has none of them."""

from __future__ import annotations

from typing import Any

from flawscope.runtime.line.sources.push import Push
from flawscope.runtime.line.sources.source import Source
from flawscope.runtime.line.sources.table import PushSource


class Sink:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def frame(self, view: str, frame: Any) -> None:
        self.calls.append(("frame", view))

    def source_up(self, view: str, detail: str = "") -> None:
        self.calls.append(("up", view))

    def source_down(self, view: str, reason: str) -> None:
        self.calls.append(("down", view))

    def skipped(self, view: str, count: int) -> None:
        self.calls.append(("skipped", view))


def test_it_is_up_from_the_start_and_gives_nothing_by_itself() -> None:
    source: Source = Push(PushSource(), "left")
    sink = Sink()
    source.start(sink)
    source.trigger(1)
    source.done("a.png")
    source.stop(1.0)
    assert sink.calls == [("up", "left")]
    assert (source.policy, source.is_triggered) == ("every", False)
