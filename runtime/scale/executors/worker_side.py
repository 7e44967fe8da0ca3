"""A worker in its own process, whoever started it: bytes in, bytes out; see `messages`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import msgspec

from flawscope import __version__
from flawscope.errors import BackendError, DeviceLost, FlawscopeError
from flawscope.runtime.scale.executors.messages import Answer, FromWorker, Opened, Order, Refusal
from flawscope.runtime.scale.task import Task
from flawscope.runtime.scale.work import WORKS, Worker, decode_work

GOES_WITH_PROCESS = (DeviceLost, MemoryError)
"""What a new process may mend: the process ends with it, and the executor starts another."""

_tasks = msgspec.json.Decoder(Task)
_orders = msgspec.json.Decoder(Order)


class WorkerSide:
    """Opens the work once and does its tasks. An error becomes a message; `GOES_WITH_PROCESS` is raised."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def open(self, order: bytes) -> bytes:
        """Take an order (`encode_order`) and return `Opened` or `Refusal`."""
        return self._told(lambda: self._open(order))

    def _open(self, data: bytes) -> FromWorker:
        order = _orders.decode(data)
        if order.version != __version__:
            raise BackendError(
                f"worker: expected flawscope {order.version}, which the driver has, got {__version__}. Install the "
                "same version wherever workers run."
            )
        for kind, place in order.works.items():
            WORKS.setdefault(kind, place)
        self._worker = decode_work(bytes(order.work)).open()
        return Opened(os.getpid())

    def run(self, task: bytes) -> bytes:
        """Do a task, written as JSON, and return `Answer` or `Refusal`."""
        return self._told(lambda: self._run(task))

    def _run(self, data: bytes) -> FromWorker:
        if self._worker is None:
            raise BackendError("worker: expected an order before the first task, got none. Start the run again.")
        return Answer(self._worker.run(_tasks.decode(data)))

    def close(self) -> None:
        """Release the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _told(self, do: Callable[[], FromWorker]) -> bytes:
        try:
            answer = do()
        except GOES_WITH_PROCESS:
            raise
        except FlawscopeError as err:
            answer = Refusal(type(err).__name__, str(err))
        except Exception as err:
            # Not a crash of native code but a mistake: the same task would meet it again, and so would all others.
            traceback.print_exc()
            answer = Refusal(
                "BackendError", f"worker: unexpected {type(err).__name__}: {err}. Go on with --resume, or report it."
            )
        return msgspec.json.encode(answer)
