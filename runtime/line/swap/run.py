"""One swap on its way: its steps, what each found, and whether somebody gave it up."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from flawscope.errors import DeviceError, FlawscopeError

STEPS = ("staged", "verified", "warm", "golden", "challenge", "shadow", "flip")
"""In their order. Whatever fails before the flip leaves the station as it is."""

STOP_STEPS = ("staged", "verified", "dropped", "warm", "golden", "challenge", "flip")
"""Those of a swap that drops the bundle in force first. What fails before the flip has that one loaded again."""

CHALLENGE = "challenge"
"""Step that tests the site's own parts; a challenge by hand has no other."""

_GIVEN_UP = "it was given up before it was done"


class GivenUp(FlawscopeError):
    """Somebody took the swap back before it was done."""


class Step:
    """A step of a swap.

    Attributes:
        name: Its name, one of `STEPS`.
        state: `waiting`, `running`, `ok`, `skipped` or `failed`.
        detail: What it found, in words.
        ms: Milliseconds that it took.
        device_failed: Whether it failed for the device, which may be a server.
    """

    def __init__(self, name: str) -> None:
        self.name, self.state, self.detail, self.ms = name, "waiting", "", 0.0
        self.device_failed = False

    def skip(self, detail: str) -> None:
        """Say that there was nothing to do."""
        self.state, self.detail = "skipped", detail


class SwapRun:
    """A swap.

    Args:
        view: View whose bundle is changed.
        digest: Digest of the new bundle.
        old: Digest of the one before.
        shadow: Parts that are scored by both before the flip.
        actor: Who asked for it.
        role: His role.
        steps: Names of its steps.
        allow_unlike: Whether its bundle may have learned from images unlike those of the view.

    Attributes:
        state: `running`, `done`, `failed` or `rolled_back`.
        steps: Its steps.
        disagreements: Parts of the shadow on which the bundles differ.
        reason: Why it failed, or was taken back.
        has_flipped: Whether its bundle was put in force: from then on it is taken back, and not given up.
        is_given_up: Set when somebody takes it back before it is done.
        has_ended: Set when nothing is done any more.
    """

    def __init__(
        self,
        view: str,
        digest: str,
        old: str,
        shadow: int,
        actor: str,
        role: str,
        steps: tuple[str, ...] = STEPS,
        *,
        allow_unlike: bool = False,
    ) -> None:
        self.view, self.digest, self.old, self.shadow, self.actor, self.role = view, digest, old, shadow, actor, role
        self.allow_unlike = allow_unlike
        self.state = "running"
        self.reason = ""
        self.steps = tuple(Step(name) for name in steps)
        self.disagreements: list[dict[str, Any]] = []
        self.has_flipped = False
        self.is_given_up = threading.Event()
        self.has_ended = threading.Event()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Do a step: what is raised in it makes it fail."""
        step = self.step_of(name)
        self.check()
        step.state, started = "running", time.monotonic()
        try:
            yield step
        except BaseException as err:
            step.state, step.detail = "failed", str(err)
            step.device_failed = isinstance(err, DeviceError)
            raise
        finally:
            step.ms = round(1e3 * (time.monotonic() - started), 3)
        if step.state == "running":
            step.state = "ok"

    def step_of(self, name: str) -> Step:
        """Return a step by its name."""
        return next(step for step in self.steps if step.name == name)

    @property
    def stops(self) -> bool:
        """Whether the bundle in force is dropped before its own is loaded."""
        return any(step.name == "dropped" for step in self.steps)

    @property
    def is_swap(self) -> bool:
        """Whether it ends with a flip; a challenge does not."""
        return self.steps[-1].name == STEPS[-1]

    def check(self) -> None:
        """Raise GivenUp if somebody took it back."""
        if self.is_given_up.is_set():
            raise GivenUp(_GIVEN_UP)

    def give_up(self) -> None:
        """Take it back before its flip. It has failed from now on, also where its thread hangs in foreign code."""
        self.is_given_up.set()
        if self.state == "running":
            self.state, self.reason = "failed", _GIVEN_UP

    @property
    def current_step(self) -> str:
        """Name of the step that it is at; of the first one before it has begun."""
        begun = [step.name for step in self.steps if step.state != "waiting"]
        return begun[-1] if begun else self.steps[0].name

    @property
    def failed_step(self) -> str:
        """Name of the step that failed; empty for none."""
        return next((step.name for step in self.steps if step.state == "failed"), "")

    def to_json(self) -> dict[str, Any]:
        """Return all of it, as the HTTP interface tells it."""
        return {
            "state": self.state,
            "view": self.view,
            "digest": self.digest,
            "old": self.old,
            "reason": self.reason,
            "actor": self.actor,
            "steps": [{"name": s.name, "state": s.state, "detail": s.detail, "ms": s.ms} for s in self.steps],
            "disagreements": list(self.disagreements),
        }
