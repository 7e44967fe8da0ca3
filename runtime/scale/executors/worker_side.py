"""A worker in its own process, whoever started it: bytes in, bytes out; see `messages`."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from flawscope import __version__
from flawscope.errors import BackendError, DeviceLost, FlawscopeError, StorageError
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.runtime.scale.executors.messages import Answer, FromWorker, Leaving, Marker, Opened, Order, Refusal
from flawscope.runtime.scale.executors.shared_folder import shared_folder
from flawscope.runtime.scale.task import Task
from flawscope.runtime.scale.work import WORKS, Worker, decode_work
from flawscope.stored_paths import path_from
from flawscope.text import encode_json

GOES_WITH_PROCESS = (DeviceLost, MemoryError)
"""What a new process may mend: the process ends with it, and the executor starts another."""

SHARED_LOG = "flawscope.runtime.scorers.shared_banks"
"""Name of the log that tells what is not shared, and why; that of the module, which is not imported for it."""
_MOST_NOTES = 20

_tasks = msgspec.json.Decoder(Task)
_orders = msgspec.json.Decoder(Order)


class WorkerSide:
    """Opens the work once and does its tasks. Whatever goes wrong becomes a message.

    Attributes:
        is_leaving: Whether this process has to end: nothing it does from now on counts.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._held = contextlib.ExitStack()
        self.is_leaving = False

    def open(self, order: bytes) -> bytes:
        """Take an order (`encode_order`) and return `Opened`, `Refusal` or `Leaving`."""
        return self._told(lambda: self._open(order))

    def _open(self, data: bytes) -> FromWorker:
        order = _orders.decode(data)
        if order.version != __version__:
            raise BackendError(
                f"worker: expected flawscope {order.version}, which the driver has, got {__version__}. Install the "
                "same version wherever workers run."
            )
        if order.marker is not None:
            _check_marker(order.marker)
        for kind, place in order.works.items():
            WORKS.setdefault(kind, place)
        notes: list[str] = []
        with _sharing_notes(notes):
            self._share(order)
            self._worker = decode_work(bytes(order.work)).open()
        return Opened(os.getpid(), socket.gethostname(), tuple(notes))

    def _share(self, order: Order) -> None:
        """Have banks in common with the other workers of this machine, where the order says so."""
        if not order.shared and not order.run:
            return
        # Lazy: works that have no bank import nothing of scorers.
        from flawscope.runtime.scorers.bank_scorer import share_banks

        try:
            folder = Path(order.shared) if order.shared else self._held.enter_context(shared_folder(order.run))
        except StorageError as err:
            logging.getLogger(SHARED_LOG).warning(
                "%s Each worker has its own memory bank, which takes more memory.", err
            )
            return
        share_banks(folder.absolute())
        self._held.callback(share_banks, None)

    def run(self, task: bytes) -> bytes:
        """Do a task, written as JSON, and return `Answer`, `Refusal` or `Leaving`."""
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
        # What it has mapped stays mapped. Who leaves a folder last removes it.
        self._held.close()

    def _told(self, do: Callable[[], FromWorker]) -> bytes:
        answer: FromWorker
        try:
            answer = do()
        except GOES_WITH_PROCESS as err:
            self.is_leaving = True
            answer = Leaving(f"{type(err).__name__}: {str(err).rstrip('.')}")
        except FlawscopeError as err:
            answer = Refusal(type(err).__name__, str(err))
        except Exception as err:
            # Not a crash of native code but a mistake: the same task would meet it again, and so would all others.
            traceback.print_exc()
            answer = Refusal(
                "BackendError", f"worker: unexpected {type(err).__name__}: {err}. Go on with --resume, or report it."
            )
        return encode_json(answer)


@contextlib.contextmanager
def _sharing_notes(notes: list[str]) -> Iterator[None]:
    """Add warnings about what is not shared to notes: what a worker logs, nobody reads."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(notes) < _MOST_NOTES:
                notes.append(record.getMessage())

    handler, logger = Handler(logging.WARNING), logging.getLogger(SHARED_LOG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _check_marker(marker: Marker) -> None:
    path = path_from(marker.path)
    try:
        text = read_regular(path, SETTINGS_BYTES).decode(errors="replace")
    except OSError as err:
        text = str(err.strerror or err)
    if text != marker.text:
        raise BackendError(
            f"{path.parent}: expected on {socket.gethostname()} the folder that the driver writes to, got another one, "
            "or none. Name a folder for --out that all machines share, under one name."
        )
