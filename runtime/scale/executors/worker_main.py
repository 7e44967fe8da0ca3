"""The program of a worker process: opens its work, does one task after the other, and ends with its driver.

It is started by `worker_process`, speaks over one pipe, and imports what its work needs.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from flawscope.parent_process import end_with_parent
from flawscope.runtime.scale.executors.worker_side import WorkerSide


def main(pipe: int, driver: int) -> None:
    """Do what the driver sends until it closes the pipe; ends the process.

    Args:
        pipe: File descriptor of the pipe to the driver.
        driver: Number of the driver's process.
    """
    faulthandler.enable()
    _live_with(driver)
    connection: Connection = Connection(pipe)
    # What the work starts must not hold the pipe: its end is how the driver sees that this process has ended.
    os.set_inheritable(pipe, False)
    side, status = WorkerSide(), 0
    try:
        connection.send_bytes(side.open(connection.recv_bytes()))
        while not side.is_leaving:
            connection.send_bytes(side.run(connection.recv_bytes()))
    except (EOFError, ConnectionError):
        pass  # the driver wants no more, or is gone
    except BaseException:
        # The last line of it becomes the reason that people read.
        traceback.print_exc()
        status = 1
    try:
        side.close()
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of libraries may never end.
    os._exit(status)


def _live_with(driver: int) -> None:
    """Die when the driver dies, also of SIGKILL and in the middle of a task; a terminal's signals are for it alone."""
    # Of the thread that made this process: see `LocalExecutor`.
    is_there = end_with_parent(driver)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not is_there:
        os._exit(0)
