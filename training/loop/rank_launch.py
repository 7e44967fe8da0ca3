"""Starts a command in several processes by torch's launcher, the one below torchrun and `accelerate launch`.

Rank 0 has the terminal; what the others write is read only where one of them fails. The first process that fails ends
all of them: the launcher looks at them several times a second, and asks those that go on to end, then kills them. They
die with the launcher too, even where it is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flawscope.errors import RunError
from flawscope.files import temporary_folder
from flawscope.training.loop.rank_environment import FOLLOWED, LAUNCHER, TERMINATED

_LOOK_EVERY_S = 0.2
_TO_END_S = 15
"""How long processes that were asked to end have for it."""
_LOGGERS = ("torch.distributed.elastic", "torch.distributed.launcher")


class RankFailed(RunError):
    """A process of several has failed.

    Args:
        message: Why.
        status: Its exit status.
        is_told: Whether it was rank 0, which has told it.
    """

    def __init__(self, message: str, status: int, *, is_told: bool) -> None:
        super().__init__(message)
        self.exit_status = status
        self.is_told = is_told


def launch(command: Sequence[str], processes: int) -> None:
    """Run a command in several processes on this machine, and wait for all of them.

    Args:
        command: Program and arguments. It finds its place by `read_rank_environment`.
        processes: How many.

    Raises:
        RankFailed: If one of them fails, which ends the others.
        RunError: If they cannot be started.
    """
    # Here: torch takes seconds to import, and whoever only asks for a class of this module does not need it.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with temporary_folder() as folder, _environment(processes), _as_before():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a free port
            local_addr="localhost",  # a look-up of the machine's own name may take long, or fail
            max_restarts=0,
            monitor_interval=_LOOK_EVERY_S,
            logs_specs=DefaultLogsSpecs(
                log_dir=str(folder), redirects={rank: Std.ALL if rank else Std.NONE for rank in range(processes)}
            ),
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as err:
            raise _failure(err.failures, processes) from None
        except SignalException as err:
            ended_by: signal.Signals | None = err.sigval
        except (RuntimeError, OSError, ValueError) as err:
            raise RunError(
                f"processes: expected {processes} to start, got {' '.join(str(err).split())[:300]}. Check that this "
                "machine may open ports on localhost."
            ) from err
        else:
            ended_by = None
    if ended_by is not None:
        signal.raise_signal(ended_by)  # what it would have done without the launcher's own handlers
        raise SystemExit(128 + ended_by)  # where it would have been ignored: the processes have ended all the same


def _failure(failures: Mapping[int, object], processes: int) -> RankFailed:
    """Return the failure that the others followed from."""
    found = [_Failure(rank, failure) for rank, failure in sorted(failures.items())]
    # Not those that only noticed that another had ended, nor those that the launcher ended; rank 0 first, because what
    # all of them find, such as a broken image, it has told already.
    own = [one for one in found if one.status not in (FOLLOWED, TERMINATED, -signal.SIGTERM)]
    # None of its own: somebody told a single process to end, which is rare.
    first = (own or [one for one in found if one.status != FOLLOWED] or found)[0]
    return RankFailed(
        f"process {first.rank} of {processes}: {first.message}",
        first.status if first in own and first.status > 0 else 2,
        is_told=first in own and first.rank == 0 and first.status > 0,
    )


class _Failure:
    """What is known of a process that failed: torch's `ProcessFailure`, in our words."""

    def __init__(self, rank: int, failure: object) -> None:
        self.rank = rank
        self.status = int(getattr(failure, "exitcode", 1))
        data = getattr(failure, "error_file_data", {})
        told = data.get("message", {}) if isinstance(data, dict) else {}
        message = told.get("message") if isinstance(told, dict) else None
        if message:
            # Without the name of the exception, which torch puts before it.
            self.message = str(message).partition(": ")[2] or str(message)
        elif self.status < 0:
            name = signal.Signals(-self.status).name if -self.status in set(signal.Signals) else f"{-self.status}"
            self.message = (
                f"expected it to go on, got killed by {name}; where nobody did so, the machine was out of memory. "
                "Go on with --resume latest."
            )
        else:
            self.message = f"expected it to go on, got an end with status {self.status}. Go on with --resume latest."


@contextlib.contextmanager
def _environment(processes: int) -> Iterator[None]:
    """Set what the processes are to know beside their places; what the user has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    wanted = {
        LAUNCHER: str(os.getpid()),
        # Each its share: N times all cores are slower than one time.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_TO_END_S),
    }
    if "lo" in {name for _, name in socket.if_nameindex()}:
        # All are on this machine; by the machine's name gloo would open ports to the network.
        wanted["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME") or "lo"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Keep torch's launcher quiet, and put back the signal handlers that it replaces; it has to be imported by then."""
    # Each has a level of its own.
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS)]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # it logs failures as tables over twenty lines
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler)


_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def own_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs flawscope with these arguments, in the way in which this process was started."""
    script = Path(sys.argv[0])
    # The script of the package, where it is one: `-m` would look for flawscope in the working directory first.
    is_script = script.name == "flawscope" and script.is_file()
    return [sys.executable, *([str(script)] if is_script else ["-m", "flawscope"]), *arguments]
