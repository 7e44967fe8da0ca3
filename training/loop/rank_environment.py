"""What torchrun and `accelerate launch` tell a process of its place among the others. Without torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flawscope.errors import ArgumentError
from flawscope.parent_process import end_with_parent

LAUNCHER = "FLAWSCOPE_LAUNCHER"
"""Environment variable with the process number of `flawscope train --processes`, in the processes that it started."""
FOLLOWED = 75
"""Exit status of a process that ended because another one had ended."""
TERMINATED = 128 + signal.SIGTERM
"""Exit status of one that was told to end."""
_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable of what torchrun, and `accelerate launch` by it, started."""
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


def die_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Let the system kill this process when the launcher that started it dies, however it dies.

    The launcher is `flawscope train --processes`, torchrun or `accelerate launch`; a process that none of them started,
    as under `srun` or by hand, lives on when its shell ends, as it may be meant to.
    """
    if is_launched(environment):
        is_there = end_with_parent(int(environment[LAUNCHER]))
    elif _TORCHRUN in environment:
        is_there = end_with_parent() and not _is_orphan()
    else:
        return
    if not is_there:
        os._exit(FOLLOWED)


def _is_orphan() -> bool:
    """Return whether the launcher had died before anybody looked: torchrun says nowhere which process it is."""
    if os.getppid() != 1:
        return False
    try:
        # In a container torchrun may itself be the first process, of this user, and is then a Python.
        return "python" not in Path("/proc/1/exe").readlink().name.lower()
    except PermissionError:
        return True
    except OSError:  # a system without /proc
        return False
