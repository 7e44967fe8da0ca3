"""What torchrun and `accelerate launch` tell a process of its place among the others. Without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from flawscope.errors import ArgumentError

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
