"""A kind of work for tests of executors: items are numbers, and some of them do harm to the process they are in."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flawscope.errors import DataError, DeviceLost
from flawscope.runtime.scale.task import Done, Task

KIND = "toy"
PLACE = "toy_work:ToyWork"


class ToyWork(msgspec.Struct, frozen=True, tag=KIND, tag_field="kind"):
    """Writes for every task a file of its numbers, a line each.

    Attributes:
        folder: Where to.
        harm: Item -> what it does: a row of `HARMS`.
        opening: What opening does: a row of `HARMS`; empty for nothing.
        once: The harm is done once: a file in `folder` keeps that.
        seconds: Time of an item.
    """

    folder: str
    harm: dict[str, str] = {}
    opening: str = ""
    once: bool = False
    seconds: float = 0.0

    def open(self) -> ToyWork:
        if self.opening:
            self._do(self.opening, "opening")
        return self

    def close(self) -> None:
        """Tell that it was closed."""
        (Path(self.folder) / f"closed-{os.getpid()}").touch()

    def run(self, task: Task) -> Done:
        for item in range(task.first, task.stop):
            if (harm := self.harm.get(str(item))) is not None:
                self._do(harm, str(item))
            time.sleep(self.seconds)
        lines = "".join(f"{item}\n" for item in range(task.first, task.stop))
        path = self.path(task)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(lines)
        scratch.rename(path)
        return self._done(task, "accept")

    def _do(self, harm: str, mark: str) -> None:
        done = Path(self.folder) / f"did-{mark}"
        if self.once and done.exists():
            return
        done.touch()
        HARMS[harm]()

    def path(self, task: Task) -> Path:
        return Path(self.folder) / f"part-{task.first}-{task.stop}.txt"

    @staticmethod
    def _done(task: Task, decision: str) -> Done:
        return Done(task, {decision: task.items}, 0.01 * task.items)

    @property
    def grain(self) -> int:
        return 1

    def whole(self, task: Task) -> Done | None:
        return self._done(task, "accept") if self.path(task).exists() else None

    def give_up(self, task: Task, reason: str) -> Done:
        self.path(task).write_text(f"{task.first} {reason}\n")
        return self._done(task, "fault")

    def join(self, shard: Task, parts: Sequence[Done]) -> Done:
        self.path(shard).write_text("".join(self.path(part.task).read_text() for part in parts))
        counts = {name: sum(part.counts.get(name, 0) for part in parts) for name in ("accept", "fault")}
        return Done(shard, counts)


def _crash() -> None:
    ctypes.string_at(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse() -> None:
    raise DataError("toy: expected a harmless item, got one that refuses. Take another.")


def _lose() -> None:
    raise DeviceLost("toy: the device is lost. Start again.")


def _mistake() -> None:
    raise KeyError("toy")


def _exit() -> None:
    sys.stderr.write("toy: these are my last words\n")
    sys.stderr.flush()
    os._exit(3)


def _print() -> None:
    for _ in range(100):
        sys.stdout.write("x" * 5000 + "\n")
    sys.stdout.flush()


def _hang() -> None:
    time.sleep(600)


HARMS = {
    "crash": _crash,
    "kill": _kill,
    "refuse": _refuse,
    "lose": _lose,
    "mistake": _mistake,
    "exit": _exit,
    "print": _print,
    "hang": _hang,
}
