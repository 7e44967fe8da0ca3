"""Reaching Ray: a cluster of its own on this machine, or one that runs; and what it prints kept off results."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from flawscope.errors import BackendError, MissingExtra

_log = logging.getLogger(__name__)

_STORE_BYTES = 80 << 20
"""Of shared memory that a cluster of its own takes, the least that Ray takes: what travels are counts."""

_ANSWER_S = 20.0

_PAUSE_S = 0.5

_ATTEMPTS = 3
"""A cluster starts a process for each driver that comes by `ray://`. It is forked amid threads of gRPC, and now and
then dies of that before it runs; the next one is as good as any."""


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as err:
        raise MissingExtra("--on ray", "ray", "ray") from err


def address_of(on: str) -> str:
    """Return the address that `--on` means; empty for a cluster of its own."""
    return os.environ.get("RAY_ADDRESS", "") if on == "ray" else on


@contextlib.contextmanager
def connected(ray: Any, on: str, cpus: int) -> Iterator[None]:
    """Be connected to a cluster; one that this process is connected to already is used, and stays connected.

    Args:
        ray: The module.
        on: `ray` or an address.
        cpus: Processors of a cluster of its own.

    Raises:
        BackendError: If there is none, or none of this version of Ray and Python.
    """
    if on == "ray" and ray.is_initialized():
        yield
        return
    address = address_of(on)
    _check_answers(on, address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address.startswith("ray://"):
        options["configure_logging"] = False
    if not address:
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    with _no_statistics():
        try:
            _init(ray, address, options)
        # Whatever it is: Ray raises RuntimeError, ConnectionError, ValueError and bare Exception.
        except Exception as err:
            where = f"a cluster at {address}" if address else "a cluster of its own on this machine"
            raise BackendError(
                f"--on {on}: expected {where}, got {type(err).__name__}: {last_line(err)}. Is it there, with the same "
                "versions of Ray and Python?"
            ) from err
    try:
        yield
    finally:
        ray.shutdown()


def _init(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Connect, again where the cluster could not start what is to serve this driver."""
    attempts = _ATTEMPTS if _is_from_outside(address) else 1
    for number in range(1, attempts + 1):
        try:
            ray.init(address or "local", **options)
            return
        except ConnectionAbortedError as err:
            if number == attempts:
                raise
            _log.info("%s: attempt %d of %d: %s", address, number, attempts, last_line(err))
            with contextlib.suppress(Exception):  # of what was made of the connection
                ray.shutdown()
            time.sleep(_PAUSE_S)


def _is_from_outside(address: str) -> bool:
    return address.startswith("ray://")


def _check_answers(on: str, address: str) -> None:
    """Raise BackendError where nobody answers at an address: Ray would look for minutes, and say so in many lines.

    The port of `ray://` opens some seconds after `ray start` has returned: while it is closed, it is waited for.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():  # `auto`, or a form that Ray knows
        return
    end = time.monotonic() + (_ANSWER_S if _is_from_outside(address) else 0.0)
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
            return
        except (OSError, OverflowError) as err:
            if isinstance(err, ConnectionRefusedError) and time.monotonic() < end:
                time.sleep(_PAUSE_S)
                continue
            raise BackendError(
                f"--on {on}: expected a cluster at {address}, got: {err}. Is it started (`ray start --head`), and "
                "reachable from here?"
            ) from err


@contextlib.contextmanager
def _no_statistics() -> Iterator[None]:
    """Let a cluster that starts send no usage statistics, unless somebody asked for them."""
    name = "RAY_USAGE_STATS_ENABLED"
    if name in os.environ:
        yield
        return
    os.environ[name] = "0"
    try:
        yield
    finally:
        del os.environ[name]


def last_line(err: BaseException) -> str:
    """Return the last line of an error, without a full stop: of a traceback in its text, what was raised."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines or [type(err).__name__])[-1].rstrip(".")


def reason_of(err: BaseException) -> str:
    """Return in few words what Ray says of the end of an actor: it explains at length."""
    text = " ".join(str(err).split())
    for start in ("Worker exit detail: ", "The actor is dead because ", "unavailable: "):
        _, found, rest = text.partition(start)
        if found:
            text = rest
            break
    said = text.partition(" Some common causes")[0][:300].rstrip(". ")
    return f"its process or its node is gone: Ray says: {said}"


class _WithoutRay:
    """Standard output, without what threads of Ray print there: it tells of dead workers in many lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what is not Ray's; the rest goes to the log."""
        if not threading.current_thread().name.startswith("ray_"):
            return self._stream.write(text)
        if text.strip():
            _log.info("%s", text.rstrip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet_output() -> Iterator[None]:
    """Keep what Ray prints off standard output and standard error, where results and messages go."""
    before = sys.stdout, sys.stderr
    ours: Any = _WithoutRay(before[0]), _WithoutRay(before[1])
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        # Somebody else may have put another one in its place meanwhile.
        if sys.stdout is ours[0]:
            sys.stdout = before[0]
        if sys.stderr is ours[1]:
            sys.stderr = before[1]
