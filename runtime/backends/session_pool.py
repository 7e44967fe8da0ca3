"""Sessions that bundles share: one for each graph that is the same to the last byte, with all that it reads.

A session is opened for the first bundle that asks for it and closed with the last one that uses it. Each user has a
handle of its own: what one of them closes, or fails with, is not taken from the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.bundle import Bundle
from flawscope.errors import DeviceError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.session import MakeDeviceHead, Session
from flawscope.runtime.backends.table import backend_row, open_session

Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SessionKey:
    """What has to be equal for two bundles to have one session.

    Attributes:
        files: Name and SHA-256 of the graph's file, and after it of those that it takes values from.
        backend: Name of the backend.
        precision: Precision of the graph.
        max_batch: Largest batch.
        cores: Threads and streams.
    """

    files: tuple[tuple[str, str], ...]
    backend: str
    precision: str
    max_batch: int
    cores: Cores = OWN_CHOICE


@dataclass(frozen=True)
class SessionUse:
    """A session and the bundles that use it.

    Attributes:
        graph: File name of its graph.
        backend: Name of the backend.
        bundles: Names of the bundles, sorted.
        reason: Why one bundle has it alone; empty where several share it.
    """

    graph: str
    backend: str
    bundles: tuple[str, ...]
    reason: str


class _Held:
    """A session, who uses it, and the bytes that it was opened from."""

    def __init__(self, key: SessionKey) -> None:
        self.key = key
        self.opening = threading.Lock()  # one opens it, the others that want it wait
        self.session: Session | None = None
        self.users: list[str] = []
        self.data: Mapping[str, bytes] = {}
        self.has_failed = False


class SessionPool:
    """Opens sessions for several bundles; all of it may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # never held while a session is opened, run or closed
        self._held: list[_Held] = []
        self._external: dict[tuple[str, str], tuple[str, ...]] = {}

    def open(
        self,
        user: str,
        bundle: Bundle,
        graph: str,
        precision: str,
        backend: str,
        make_head: MakeDeviceHead | None = None,
        cores: Cores = OWN_CHOICE,
    ) -> PooledSession:
        """Return a session of a graph, one that is open already if it is of an equal graph.

        A session that has failed is given to nobody any more: whoever opens its device anew gets a new one.

        Args:
            user: Name of the bundle, as `uses` has it.
            bundle: The opened bundle.
            graph: As in `open_session`, with `precision`, `backend` and `make_head`.
            precision: Precision of the graph.
            backend: Name of a backend, not `auto`.
            make_head: Used only where the backend's sessions serve one bundle each.
            cores: Threads and streams.

        Raises:
            ArgumentError: If the bundle lacks the precision.
            BackendError: If the backend cannot run the graph.
            BundleError: If the bundle has no such graph, or it is broken.
        """
        held = self._join(user, self._key(bundle, graph, precision, backend, cores))
        try:
            with held.opening:
                if held.session is None:
                    shares = backend_row(backend).alone is None
                    # A bank beside the graph would be that of the first bundle, for all that share the session.
                    head = None if shares else make_head
                    held.session = open_session(bundle, graph, precision, backend, head, cores)
                    if shares:
                        held.data = {name: bundle.read(name) for name, _ in held.key.files}
                # A device that is opened anew takes these bytes, and not what lies on disk by then.
                for name, data in held.data.items():
                    bundle.adopt(name, data)
                return PooledSession(held.session, backend, lambda: self._retire(held), lambda: self._leave(user, held))
        except BaseException:
            self._leave(user, held)
            raise

    def uses(self) -> tuple[SessionUse, ...]:
        """Return all open sessions in the order in which they were opened."""
        with self._lock:
            ready = [(held, tuple(sorted(set(held.users)))) for held in self._held if held.session is not None]
        everyone = [held for held, _ in ready]
        return tuple(
            SessionUse(
                held.key.files[0][0], held.key.backend, users, "" if len(users) > 1 else _why_alone(held, everyone)
            )
            for held, users in ready
        )

    def _key(self, bundle: Bundle, graph: str, precision: str, backend: str, cores: Cores) -> SessionKey:
        listed = bundle.manifest.files
        file = bundle.graph_file(graph, precision)
        place = (file, listed[file].sha256)
        # Of an equal graph it is known which files it takes values from: it need not be read again.
        if place not in self._external:
            self._external[place] = bundle.graph_files(graph, precision)[1:]
        # A file that is not listed is an error of `open_session`, which finds it with another reason to give.
        files = tuple((name, listed[name].sha256) for name in self._external[place] if name in listed)
        return SessionKey((place, *files), backend, precision, bundle.manifest.max_batch, cores)

    def _join(self, user: str, key: SessionKey) -> _Held:
        with self._lock:
            shares = backend_row(key.backend).alone is None
            for held in self._held:
                if shares and held.key == key and not held.has_failed:
                    break
            else:
                held = _Held(key)
                self._held.append(held)
            held.users.append(user)
            return held

    def _retire(self, held: _Held) -> None:
        with self._lock:
            held.has_failed = True

    def _leave(self, user: str, held: _Held) -> None:
        with self._lock:
            held.users.remove(user)
            if held.users:
                return
            self._held.remove(held)
        if held.session is not None:
            held.session.close()


class PooledSession:
    """One bundle's handle of a session that others may have too; see `Session` for the contract.

    Args:
        session: The session.
        backend: Name of its backend.
        failed: Called where the session fails.
        leave: Called once, where this handle is closed.

    Attributes:
        outputs: Names of what `infer` returns.
    """

    def __init__(self, session: Session, backend: str, failed: Callable[[], None], leave: Callable[[], None]) -> None:
        self.outputs = session.outputs
        self._session: Session | None = session
        self._backend, self._failed = backend, failed
        self._leave: list[Callable[[], None]] = [leave]

    def infer(self, images: UInt8Array) -> Outputs:
        """Run the graph on a batch."""
        return self._run(lambda session: session.infer(images))

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Outputs:
        """Run the graph on several inputs."""
        return self._run(lambda session: session.run(inputs))

    def _run(self, work: Callable[[Session], Outputs]) -> Outputs:
        session = self._session
        if session is None:
            raise DeviceError(f"backend {self._backend}: the session is closed. Load the bundle again.")
        try:
            return work(session)
        except DeviceError:
            self._failed()
            raise

    def close(self) -> None:
        """Leave the session, which is closed with its last user; closing twice is harmless."""
        self._session = None
        try:
            leave = self._leave.pop()  # one step, so that of two threads one leaves
        except IndexError:
            return
        leave()


def _why_alone(held: _Held, everyone: Sequence[_Held]) -> str:
    """Return why a session has one user, beside all that are open."""
    key = held.key
    if (alone := backend_row(key.backend).alone) is not None:
        return f"backend {key.backend}: {alone}"
    alike = [other for other in everyone if other is not held and other.key.files[0] == key.files[0]]
    if any(other.key == key for other in alike):
        return "the device of one of the bundles with this graph failed and was opened anew"
    if same := [other.key for other in alike if other.key.files == key.files]:
        names = ("backend", "precision", "max_batch", "cores")
        other = {name: getattr(same[0], name) for name in names if getattr(same[0], name) != getattr(key, name)}
        return f"others have this graph with {', '.join(f'{name} {value}' for name, value in other.items())}"
    if alike:
        # Of every other one at least one differs; those that differ from the first are as good an answer as any.
        differing = [name for name, digest in key.files[1:] if (name, digest) not in alike[0].key.files]
        return f"{' and '.join(differing)}, which the graph reads, differs in the other bundles with this graph"
    return "no other bundle has this graph"
