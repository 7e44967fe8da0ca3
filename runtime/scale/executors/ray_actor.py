"""The worker of the executor `ray`: an actor, which Ray starts on one of its nodes. This file imports no Ray."""

from __future__ import annotations

import faulthandler

from flawscope.runtime.scale.executors.worker_side import WorkerSide


class RayActor:
    """Bytes in, bytes out, as over the pipe of a process: what Ray serializes are bytes alone."""

    def __init__(self) -> None:
        faulthandler.enable()  # to the log of the worker, on its node
        self._side = WorkerSide()

    def open(self, order: bytes) -> bytes:
        """Open the work; see `WorkerSide.open`."""
        return self._side.open(order)

    def run(self, task: bytes) -> bytes:
        """Do a task; see `WorkerSide.run`."""
        return self._side.run(task)

    def close(self) -> None:
        """Release the work."""
        self._side.close()
