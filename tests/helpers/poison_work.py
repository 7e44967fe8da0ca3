"""The work of `score`, whose process is killed by each image of one name, as by a crash in a decoder."""

from __future__ import annotations

import os
import signal

from flawscope.runtime.scale.plan_items import read_items
from flawscope.runtime.scale.score_work import ScoreWork, ScoreWorker
from flawscope.runtime.scale.task import Done, Task

KIND = "poison"
PLACE = "poison_work:PoisonWork"


class PoisonWork(ScoreWork, frozen=True, tag_field="kind", tag=KIND):
    """As `ScoreWork`.

    Attributes:
        poison: End of the name of the image that kills.
    """

    poison: str = ""

    def open(self) -> _PoisonWorker:
        worker = super().open()
        assert isinstance(worker, ScoreWorker)
        return _PoisonWorker(self, worker)


class _PoisonWorker:
    def __init__(self, work: PoisonWork, worker: ScoreWorker) -> None:
        self._work, self._worker = work, worker

    def run(self, task: Task) -> Done:
        plan = self._worker.plan
        if any(item.name.endswith(self._work.poison) for item in read_items(self._worker.out, plan, task)):
            os.kill(os.getpid(), signal.SIGSEGV)
        return self._worker.run(task)

    def close(self) -> None:
        self._worker.close()
