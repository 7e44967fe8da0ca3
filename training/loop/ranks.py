"""The processes of a training: what they tell each other. A training in one process needs none of it.

A rank is one of N processes that torchrun, `accelerate launch` or `train --processes` started. Every rank has to enter
every method here that says so, in the same order: one that does not leaves the others waiting. Rank 0 is the writer:
it alone writes files and the terminal, and what depends on files is decided there and told to the others.

Arrays travel by gloo, gradients of a GPU by NCCL; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from flawscope.errors import ArgumentError, RunError
from flawscope.text import encode_json
from flawscope.training.loop.rank_environment import RankEnvironment, read_rank_environment

_PATIENCE = datetime.timedelta(minutes=30)
"""How long a rank waits for the others: rank 0 may be reading or writing many files. One that died is noticed by its
launcher within a second, and by a closed connection; only what hangs for other reasons takes this long."""
_CHUNK_BYTES = 32 << 20
_Scalar = TypeVar("_Scalar", bound=np.generic)


class PeerLost(RunError):
    """Another process of the training has ended; why is in its own message."""


class Ranks:
    """This process among those of a training.

    Args:
        place: Its place. More than one process need an initialized process group of torch.

    Attributes:
        rank: Its number, from 0.
        world: Processes in all.
    """

    def __init__(self, place: RankEnvironment | None = None) -> None:
        place = RankEnvironment() if place is None else place
        self.rank, self.world, self._local_rank = place.rank, place.world, place.local_rank

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and the terminal."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU where torch finds none.

        Raises:
            ArgumentError: If the machine has fewer GPUs than processes.
        """
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.world > 1:
            if self._local_rank >= (count := torch.cuda.device_count()):
                raise ArgumentError(
                    f"processes: expected at most one for each GPU of a machine, got number {self._local_rank + 1} and "
                    f"{count} GPUs. Start fewer, or use --set device=cpu."
                )
            # "cuda" alone means this one from here on, as libraries say it.
            torch.cuda.set_device(self._local_rank)
        return torch.device("cuda", torch.cuda.current_device())

    def share(self, count: int) -> npt.NDArray[np.int64]:
        """Return which of `count` items are this process's: every `world`-th, from its own number on, ascending."""
        return np.arange(self.rank, count, self.world, dtype=np.int64)

    def sum(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the sums over all processes of arrays of one shape, float64. Every rank enters."""
        total = np.array(values, np.float64)  # a copy, contiguous
        if self.world > 1:
            with _peers():
                dist.all_reduce(torch.from_numpy(total))
        return total

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor of one shape and type over all processes, in place, on its device. Every rank enters."""
        if self.world > 1:
            with _peers():
                dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait until all processes are here. Every rank enters."""
        self.sum(0.0)

    def broadcast(self, value: Any = None) -> Any:
        """Return rank 0's value, which JSON can hold, on every process; the others' values do not matter.

        Every rank enters. Where there are several, tuples arrive as lists on all of them.
        """
        if self.world == 1:
            return value
        data = self.broadcast_bytes(encode_json(value) if self.is_writer else b"")
        return msgspec.json.decode(data)

    def broadcast_bytes(self, data: bytes = b"") -> bytes:
        """Return rank 0's bytes on every process. Every rank enters."""
        if self.world == 1:
            return data
        size = torch.tensor([len(data)], dtype=torch.int64)
        with _peers():
            dist.broadcast(size, 0)
            # A tensor of its own: that of a bytes object must not be written to.
            buffer = torch.empty(int(size), dtype=torch.uint8)
            if self.is_writer and data:
                buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            for part in torch.split(buffer, _CHUNK_BYTES):
                dist.broadcast(part, 0)
        return data if self.is_writer else buffer.numpy().tobytes()

    def broadcast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Give a tensor rank 0's values, in place, on its device. Every rank enters."""
        if self.world > 1:
            with _peers():
                dist.broadcast(tensor, 0)
        return tensor

    def gather_rows(self, rows: npt.NDArray[_Scalar], indices: npt.NDArray[np.int64]) -> npt.NDArray[_Scalar] | None:
        """Return the rows of all processes on rank 0, in the order of their indices; None on the others.

        Every rank enters. Beside the result, rank 0 holds the indices and one chunk of 32 MiB.

        Args:
            rows: [n, ...], of one type and row shape on all processes; n may differ, and be 0.
            indices: int64 [n]; no two rows share one, over all processes.

        Raises:
            ArgumentError: If rows and indices differ in number.
        """
        if len(rows) != len(indices):
            raise ArgumentError(f"indices: expected one for each of {len(rows)} rows, got {len(indices)}.")
        if self.world == 1:
            return rows[np.argsort(indices, kind="stable")]
        of_each = np.zeros(self.world)
        of_each[self.rank] = len(rows)
        counts = self.sum(of_each).astype(np.int64)
        width = int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.dtype.itemsize
        # As bytes: gloo has no transport for every type of number.
        own = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(len(rows), width)
        with _peers():
            if self.is_writer:
                gathered = _receive_rows(own, np.asarray(indices, np.int64), counts, width)
                return gathered.reshape(-1).view(rows.dtype).reshape(len(gathered), *rows.shape[1:])
            if len(rows):
                dist.send(torch.from_numpy(np.array(indices, np.int64)), 0)
            for start in range(0, len(rows), _rows_of_chunk(width)):
                # A copy of the chunk: rows may be read-only, which torch warns of.
                dist.send(torch.from_numpy(own[start : start + _rows_of_chunk(width)].copy()), 0)
        return None

    def facts(self, batch: int | None = None) -> dict[str, int]:
        """Return what the record of a run says of its processes; nothing where there was one.

        Args:
            batch: Images of a step over all processes, or None for a method without steps.
        """
        if self.world == 1:
            return {}
        of_batch = {} if batch is None else {"effective_batch": batch, "batch_per_process": batch // self.world}
        return {"processes": self.world, **of_batch}


def _rows_of_chunk(width: int) -> int:
    return max(1, _CHUNK_BYTES // max(1, width))


def _receive_rows(
    own: npt.NDArray[np.uint8], own_indices: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], width: int
) -> npt.NDArray[np.uint8]:
    """Return the rows of all processes, bytes [sum of counts, width], in the order of their indices."""
    others = [rank for rank in range(1, len(counts)) if counts[rank]]
    indices = [own_indices]
    for rank in others:
        received = torch.empty(int(counts[rank]), dtype=torch.int64)
        dist.recv(received, rank)
        indices.append(received.numpy())
    order = np.argsort(np.concatenate(indices), kind="stable")
    places = np.empty_like(order)  # of each row as it arrives
    places[order] = np.arange(len(order))
    result = np.empty((len(order), width), np.uint8)
    result[places[: len(own)]] = own
    done, step = len(own), _rows_of_chunk(width)
    for rank in others:
        for start in range(0, int(counts[rank]), step):
            part = torch.empty((min(step, int(counts[rank]) - start), width), dtype=torch.uint8)
            dist.recv(part, rank)
            result[places[done : done + len(part)]] = part.numpy()
            done += len(part)
    return result


_joined: Ranks | None = None


def ranks() -> Ranks:
    """Return this process among those of a training, by the environment that its launcher set.

    The first call waits for the other processes.

    Raises:
        ArgumentError: If the environment is incomplete.
        RunError: If the others cannot be reached.
    """
    global _joined
    if _joined is None:
        place = read_rank_environment()
        if place.world > 1 and not dist.is_initialized():
            _join(place)
        _joined = Ranks(place)
    return _joined


def leave() -> None:
    """Leave the other processes, at the end of the work."""
    global _joined
    if dist.is_initialized():
        dist.destroy_process_group()
    _joined = None


def _join(place: RankEnvironment) -> None:
    # Arrays of the CPU by gloo in any case, so that sums in float64 and bytes need no GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as err:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunError(
            f"processes: expected {place.world} that meet at {where}, got {' '.join(str(err).split())[:300]}. Check "
            "that all of them run and that nothing keeps them from reaching each other."
        ) from err


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """Raise PeerLost where a collective fails: torch says a dozen things when a connection breaks.

    Short memory is this process's own fault, and no PeerLost, whose message would be taken for that of a follower.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as err:
        if "allocate memory" in str(err):  # on the CPU torch says so by a plain RuntimeError
            raise RunError(
                "processes: expected memory for what the processes of the training tell each other, got none. Start "
                "fewer, or use fewer images or smaller ones."
            ) from err
        raise PeerLost(
            "processes: expected all processes of the training to go on, got one that has ended, or that did not "
            f"answer ({' '.join(str(err).split())[:200]}). Its own message says why; go on with --resume latest."
        ) from err


def on_writer(do: Callable[[], Any]) -> Any:
    """Return on every process what a function returns on rank 0, where alone it is called; JSON must hold it."""
    here = ranks()
    return here.broadcast(do() if here.is_writer else None)
