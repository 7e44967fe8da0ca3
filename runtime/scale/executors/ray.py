"""Executor `ray`: actors on the nodes of a Ray cluster. Ray places them; all else is as on one machine.

An actor is not restarted by Ray, and no task repeated: who died is told to the driver, and replaced here. Whoever seems
to be gone is killed before: a node that is cut off may go on with its task, and ends with an equal file.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flawscope.errors import ArgumentError, BackendError
from flawscope.files import storage_errors
from flawscope.runtime.backends.cores import usable_cores
from flawscope.runtime.scale.executors import Placement
from flawscope.runtime.scale.executors.messages import FromWorker, Marker, Opened, decode_answer, encode_order
from flawscope.runtime.scale.executors.patience import Patience
from flawscope.runtime.scale.executors.ray_actor import RayActor
from flawscope.runtime.scale.executors.ray_cluster import connected, import_ray, last_line, quiet_output, reason_of
from flawscope.runtime.scale.executors.seats import Gone, Seat, SeatedExecutor
from flawscope.runtime.scale.task import Task
from flawscope.scratch import scratch_file
from flawscope.stored_paths import stored_path
from flawscope.text import NOT_JSON, encode_json

_NO_NODE_S = 120.0
"""Seconds that are waited for a node where none is left."""


class RayWorker:
    """An actor, and what it is at.

    Args:
        ray: The module.
        number: Number of the worker.
        placement: What it needs of a node.
        order: What it is to do, of `encode_order`.

    Attributes:
        name: What it is called; with its machine and process once it is ready.
        pending: What it is at; its result comes.
    """

    def __init__(self, ray: Any, number: int, placement: Placement, order: bytes) -> None:
        self.name = f"ray/{number}"
        self._ray = ray
        options = {
            "num_cpus": placement.threads,
            "num_gpus": placement.gpus_per_worker,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        self._actor: Any = ray.remote(RayActor).options(**options).remote()
        self.pending: Any = self._actor.open.remote(order)

    def start(self, task: Task) -> None:
        """Give it a task."""
        self.pending = self._actor.run.remote(encode_json(task))

    def answer(self) -> FromWorker | Gone:
        """Return what it said, which is there, or why it is gone."""
        try:
            said = decode_answer(self._ray.get(self.pending))
        except self._ray.exceptions.RayActorError as err:
            return Gone(reason_of(err))
        except (self._ray.exceptions.RayError, RuntimeError, *NOT_JSON) as err:
            # Not the end of a process: the node cannot run it at all.
            raise BackendError(
                f"{self.name}: expected a node with this version of flawscope in the environment of its Ray, got: "
                f"{last_line(err)}. Install it there."
            ) from err
        finally:
            self.pending = None
        if isinstance(said, Opened):
            self.name = f"{self.name} ({said.host}, process {said.pid})"
        return said

    def let_go(self) -> None:
        """Let it end by itself, which has no task."""
        self.pending = self._actor.close.remote()

    def kill(self) -> None:
        """End it by force."""
        with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(self._actor, no_restart=True)
        self.pending = None

    def end(self, grace_s: float) -> None:
        """Wait until it has released its work, and end it."""
        if self.pending is not None and grace_s:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.wait([self.pending], timeout=grace_s)
        self.kill()


class RayExecutor(SeatedExecutor[RayWorker]):
    """Actors of a Ray cluster, each with the work opened once.

    Args:
        work: What `encode_work` wrote.
        placement: Which cluster; how many, with how many threads (Ray's CPUs) and GPUs.
        patience: How long a task may take.

    Raises:
        ArgumentError: If the number of workers is none.
        MissingExtra: If Ray is not installed.
    """

    def __init__(self, work: bytes, placement: Placement, patience: Patience | None = None) -> None:
        super().__init__(patience)
        if placement.workers is not None and placement.workers < 1:
            raise ArgumentError(f"--workers: expected at least 1, got {placement.workers}.")
        self._ray = import_ray()
        self._work, self._placement = work, placement
        self._order = b""
        self._held = contextlib.ExitStack()
        self._alone_since = float("inf")

    def _connect(self) -> None:
        placement = self._placement
        workers = placement.count(max(1, usable_cores() // placement.threads))
        self._held.enter_context(quiet_output())
        self._held.enter_context(connected(self._ray, placement.on, workers * placement.threads))
        marker = None if placement.folder is None else self._held.enter_context(_marker(placement.folder))
        # Each worker finds the folder on its own machine. Of one alone nobody shares anything.
        run = secrets.token_hex(16) if placement.shares and placement.workers != 1 else ""
        self._order = encode_order(self._work, marker, run=run)

    def _disconnect(self) -> None:
        self._held.close()

    def _count(self) -> int:
        most = self._room()
        if most == 0:
            need = f"{self._placement.threads} CPUs and {self._placement.gpus_per_worker:g} GPUs"
            raise BackendError(
                f"--on {self._placement.on}: expected a node with {need} for a worker, got none among "
                f"{len(self._nodes())}. Lower --threads or --gpus-per-worker."
            )
        return self._placement.count(most)

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        """Return how many workers all nodes have room for."""
        cpus, gpus = self._placement.threads, self._placement.gpus_per_worker
        return sum(
            min(int(node.get("CPU", 0) / cpus), int(node.get("GPU", 0) / gpus + 1e-9) if gpus else 1 << 30)
            for node in self._nodes()
        )

    def _started(self, number: int) -> RayWorker:
        return RayWorker(self._ray, number, self._placement, self._order)

    def _hear(self, seats: list[Seat[RayWorker]], timeout_s: float) -> list[tuple[Seat[RayWorker], FromWorker | Gone]]:
        by_pending = {
            seat.worker.pending: (seat, seat.worker)
            for seat in seats
            if seat.worker is not None and seat.worker.pending is not None
        }
        if not by_pending:  # all are idle, and none is to be waited for
            time.sleep(min(timeout_s, 0.1))
            return []
        try:
            ready, _ = self._ray.wait(list(by_pending), num_returns=1, timeout=timeout_s)
            if not ready:
                self._check_nodes(any(seat.is_open for seat in seats))
        except (self._ray.exceptions.RayError, ConnectionError, RuntimeError) as err:
            raise BackendError(
                f"--on {self._placement.on}: expected the cluster to stay, got {type(err).__name__}: {last_line(err)}. "
                "What is whole stays, and --resume goes on."
            ) from err
        return [(by_pending[pending][0], by_pending[pending][1].answer()) for pending in ready]

    def _check_nodes(self, is_any_open: bool) -> None:
        """Raise BackendError where there has been neither a worker nor room for one for long."""
        if is_any_open or self._room():
            self._alone_since = float("inf")
            return
        self._alone_since = min(self._alone_since, time.monotonic())
        if time.monotonic() - self._alone_since > _NO_NODE_S:
            raise BackendError(
                f"--on {self._placement.on}: expected a node with room for a worker, got none for {_NO_NODE_S:g} s. "
                "What is whole stays, and --resume goes on."
            )


@contextlib.contextmanager
def _marker(folder: Path) -> Iterator[Marker]:
    """Yield a file in a folder that is there for as long as workers start."""
    text = secrets.token_hex(16)
    with contextlib.ExitStack() as held:
        with storage_errors(folder):
            path = held.enter_context(scratch_file(folder))
            path.write_text(text)
            path.chmod(0o644)  # workers may be of another user
        yield Marker(stored_path(path), text)
