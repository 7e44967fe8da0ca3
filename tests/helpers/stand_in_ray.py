"""A stand-in for the parts of Ray that the executor uses: actors are threads, which can be made to die."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import ModuleType, SimpleNamespace
from typing import Any


class RayError(Exception):
    """Any error of Ray."""


class RayActorError(RayError):
    """An actor is gone."""


class _Method:
    def __init__(self, actor: _Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any) -> Future[Any]:
        return self._actor.submit(self._name, arguments)


class _Actor:
    """An actor: a thread of its own, and futures that fail when it is killed."""

    def __init__(self, ray: StandInRay, kind: type[Any], options: dict[str, Any]) -> None:
        self.options, self._ray, self._number = options, ray, next(ray.numbers)
        self._pool, self._object = ThreadPoolExecutor(1), kind()
        self.is_dead = False
        self._pending: list[Future[Any]] = []

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)

    def submit(self, name: str, arguments: tuple[Any, ...]) -> Future[Any]:
        answer: Future[Any] = Future()
        self._pending.append(answer)
        if self.is_dead:
            self.kill()
        else:
            self._pool.submit(self._do, answer, name, arguments)
        return answer

    def _do(self, answer: Future[Any], name: str, arguments: tuple[Any, ...]) -> None:
        if self._ray.harm(self._number, name):
            self.kill()
            return
        try:
            result = getattr(self._object, name)(*arguments)
        except Exception as err:  # as Ray: it travels to whoever asks
            if not answer.done():
                answer.set_exception(RayError(str(err)))
            return
        if not answer.done():
            answer.set_result(result)

    def kill(self) -> None:
        self.is_dead = True
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(RayActorError("The actor is dead because it was killed. Some common causes"))


class StandInRay(ModuleType):
    """The module.

    Args:
        cpus: Of each node.
        harm: `(number of the actor, method) -> bool`: whether the actor dies of that call.

    Attributes:
        refusals: What the next calls of `init` raise.
    """

    def __init__(self, cpus: tuple[int, ...], harm: Callable[[int, str], bool]) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=RayError, RayActorError=RayActorError)
        self.numbers = itertools.count()
        self.harm = harm
        self.cpus = cpus
        self.actors: list[_Actor] = []
        self.calls: list[tuple[Any, ...]] = []
        self.refusals: list[Exception] = []
        self._is_up = False

    def init(self, address: str, **options: Any) -> None:
        self.calls.append(("init", address, options))
        if self.refusals:
            raise self.refusals.pop(0)
        self._is_up = True

    def is_initialized(self) -> bool:
        return self._is_up

    def shutdown(self) -> None:
        self.calls.append(("shutdown",))
        self._is_up = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in self.cpus]

    def remote(self, kind: type[Any]) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda: self._made(kind, options)))

    def _made(self, kind: type[Any], options: dict[str, Any]) -> _Actor:
        self.actors.append(_Actor(self, kind, options))
        return self.actors[-1]

    def wait(self, refs: list[Future[Any]], num_returns: int = 1, timeout: float | None = None) -> Any:
        ready = wait(refs, timeout, FIRST_COMPLETED).done
        if not ready:
            time.sleep(0.01)
        return list(ready)[:num_returns], [ref for ref in refs if ref not in ready]

    def get(self, ref: Future[Any]) -> Any:
        return ref.result()

    def kill(self, actor: _Actor, *, no_restart: bool) -> None:
        assert no_restart
        actor.kill()
