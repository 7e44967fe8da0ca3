"""Processes of a fit as threads of one process, to test what they tell each other without starting any."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from flawscope.training.loop.rank_environment import RankEnvironment
from flawscope.training.loop.ranks import Ranks

_Result = TypeVar("_Result")


class _Board:
    """Where the threads of a world leave their values for each other."""

    def __init__(self, world: int) -> None:
        self.values: list[Any] = [None] * world
        self.barrier = threading.Barrier(world, timeout=60)


class ThreadRanks(Ranks):
    """A rank that is a thread; it stands in for gloo alone."""

    def __init__(self, rank: int, world: int, board: _Board) -> None:
        super().__init__(RankEnvironment(rank, world, rank, world))
        self._board = board

    def _exchange(self, name: str, value: Any) -> list[Any]:
        """Return the values of all ranks; ranks that enter different collectives are an error."""
        self._board.values[self.rank] = (name, value)
        self._board.barrier.wait()
        entries = list(self._board.values)
        self._board.barrier.wait()
        assert {entry[0] for entry in entries} == {name}, entries
        return [entry[1] for entry in entries]

    def sum(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        return np.sum(self._exchange("sum", np.array(values, np.float64)), axis=0)

    def broadcast_bytes(self, data: bytes = b"") -> bytes:
        sent: bytes = self._exchange("broadcast", data)[0]
        return sent

    def broadcast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        sent = self._exchange("broadcast_tensor", tensor.clone())[0]
        assert (sent.shape, sent.dtype) == (tensor.shape, tensor.dtype)
        return tensor.copy_(sent)

    def gather_rows(self, rows: Any, indices: npt.NDArray[np.int64]) -> Any:
        entries = self._exchange("gather", (rows.copy(), indices))
        assert len({(part.shape[1:], part.dtype) for part, _ in entries}) == 1
        if not self.is_writer:
            return None
        order = np.argsort(np.concatenate([places for _, places in entries]))
        return np.concatenate([part for part, _ in entries])[order]


def in_ranks(world: int, do: Callable[[Ranks], _Result]) -> list[_Result]:
    """Return what a function returns on each rank; the first error of a rank is raised."""
    board, results, errors = _Board(world), dict[int, _Result](), list[BaseException]()

    def run(rank: int) -> None:
        try:
            results[rank] = do(ThreadRanks(rank, world, board))
        except threading.BrokenBarrierError as err:
            errors.append(err)
        except BaseException as err:
            errors.insert(0, err)
            board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(world)]
