"""What torchrun and `accelerate launch` tell a process of its place among the others. Without torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from flawscope.errors import ArgumentError

LAUNCHER = "FLAWSCOPE_LAUNCHER"
"""Environment variable with the process number of `flawscope train --processes`, in the processes that it started."""
FOLLOWED = 75
"""Exit status of a process that ended because another one had ended."""
TERMINATED = 128 + signal.SIGTERM
"""Exit status of one that was told to end."""
_PR_SET_PDEATHSIG = 1
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankEnvironment:
    """The place of this process.

    Attributes:
        rank: Number of the process, from 0.
        world: Processes in all, over all machines.
        local_rank: Number of the process on its machine, from 0, which is the number of its GPU.
        local_world: Processes on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def read_rank_environment(environment: Mapping[str, str] = os.environ) -> RankEnvironment:
    """Return the place of this process, by the variables that its launcher set; alone where there are none.

    Raises:
        ArgumentError: If they are incomplete, or no place among the processes.
    """
    world = _number(environment, "WORLD_SIZE", 1)
    # `WORLD_SIZE=1`, which some clusters set for every job, needs nothing more.
    if world == 1:
        return RankEnvironment()
    missing = [name for name in _NEEDED if not environment.get(name)]
    if world < 1 or missing:
        got = f"none of {', '.join(missing)}" if missing else f"{world} processes"
        raise ArgumentError(
            f"WORLD_SIZE={world}: expected the variables that torchrun sets ({', '.join(_NEEDED)}), got {got}. Start "
            "it with --processes, torchrun or accelerate launch, or unset WORLD_SIZE."
        )
    rank, local_world = _number(environment, "RANK", 0), _number(environment, "LOCAL_WORLD_SIZE", world)
    local_rank = _number(environment, "LOCAL_RANK", rank)
    if not (0 <= rank < world and 0 <= local_rank < local_world):
        raise ArgumentError(
            f"RANK={rank}: expected a process of {world}, {local_world} of them on this machine, got number {rank}, "
            f"here {local_rank}. Start it with --processes, torchrun or accelerate launch."
        )
    return RankEnvironment(rank, world, local_rank, local_world)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    try:
        return int(text)
    except ValueError as err:
        raise ArgumentError(f"{name}: expected a whole number, got {text!r}. Unset it, or use torchrun.") from err


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `flawscope train --processes` started this process, and tells of its failures."""
    return LAUNCHER in environment


def die_with_launcher() -> None:
    """Let the system kill this process when `flawscope train --processes` that started it dies, however it dies."""
    if not is_launched() or not sys.platform.startswith("linux"):
        return
    # The system sends it when the thread that made this process ends: that is the launcher's main thread.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if str(os.getppid()) != os.environ[LAUNCHER]:  # it died before
        os._exit(FOLLOWED)
