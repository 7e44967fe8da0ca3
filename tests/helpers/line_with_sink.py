"""A line process without cameras: it records parts in a journal, and a sink tells them; it may be killed at any time.

    python line_with_sink.py STATE SINK PARTS [SENT]

SINK is the JSON of a sink's options. It records PARTS parts, and ends by itself when all has been sent. With SENT it
kills itself after so many batches have been sent, before the cursor of the last one is kept.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from flawscope.runtime.line.clock import SystemClock, boot_id, iso
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.parts import PartRecord, ViewRecord
from flawscope.runtime.line.sinks.runner import SinkRunner, open_sink
from flawscope.runtime.line.sinks.sink import Sink
from flawscope.runtime.line.sinks.table import SinkOptions


class Deadly:
    """Kills this process after some batches, as soon as they have arrived."""

    def __init__(self, sink: Sink, batches: int) -> None:
        self.batch = 7
        self._sink, self._batches = sink, batches

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        self._sink.send(entries)
        self._batches -= 1
        if not self._batches:
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        self._sink.close()


def record_part(journal: Journal, seq: int) -> None:
    """Record an accepted part, and return when it is on the disk."""
    clock = SystemClock()
    views = (ViewRecord("front", "accept", score=0.25, threshold=1.0),)
    utc, now = iso(clock.utc_ns()), clock.mono_ns()
    recorded = threading.Event()
    journal.record(
        PartRecord(seq, "top", f"bolt-{seq}", utc, now, boot_id(), 1, "accept", score=0.25, views=views),
        lambda error: recorded.set(),
    )
    assert recorded.wait(60)


def main(state: str, options: str, parts: str, sent: str = "") -> None:
    chosen: Any = msgspec.json.decode(options, type=SinkOptions, dec_hook=lambda kind, value: kind(value))
    journal = Journal.open(Path(state), "press", SystemClock())
    sink = open_sink(chosen, "press")
    pause = threading.Event()
    runner = SinkRunner(
        "mes", Deadly(sink, int(sent)) if sent else sink, journal, wait=lambda seconds: pause.wait(0.05)
    )
    runner.start()
    for seq in range(journal.last_seq + 1, journal.last_seq + 1 + int(parts)):
        record_part(journal, seq)
    while runner.behind:
        pause.wait(0.01)
    runner.stop(10.0)
    journal.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
