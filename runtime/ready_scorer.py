"""A bundle's scorer, ready on a device: it gives the golden scores, and is opened again after the device failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Bundle
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import BackendError, DeviceError
from flawscope.runtime.backends.choice import REFERENCE, Choice
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.scorers.golden import check_golden, check_outputs
from flawscope.runtime.scorers.scorer import Part, Reconstructor, Scorer, ScorerOptions, open_scorer
from flawscope.time_limit import within


class ReadyScorer:
    """Opens the scorer of a bundle, and keeps it open.

    Args:
        bundle: The opened bundle.
        options: Backend, path and precision.
        choice: The backend that was chosen, or those that a measurement decides between.
        limit_s: Seconds until it must be ready, when it is opened and when it is opened again; 0 for no limit.
        may_be_away: Whether a server that is away is no error: it is as a device that failed, and opened by the next
            images.

    Attributes:
        scorer: The scorer; replaced by a new one after the device failed.
        options: Backend, path and precision in use.
        reason: Why this backend is used.
        device_failed: Whether the device failed at the last images; it is opened again before the next.

    Raises:
        BundleError: If it does not reproduce the golden scores.
        BackendError: If the backend is not available or cannot run the graph.
        DeviceError: If a server does not answer, or not as it must, and may not be away.
        LoadTimeout: If it is not ready in time. The thread that loads it cannot be ended and is left behind.
    """

    __slots__ = ("_bundle", "_choice", "_limit_s", "_lock", "_sampling", "device_failed", "options", "reason", "scorer")

    def __init__(
        self, bundle: Bundle, options: ScorerOptions, choice: Choice, *, limit_s: float, may_be_away: bool = False
    ) -> None:
        self._bundle, self._choice = bundle, choice
        self.options, self.reason = options, choice.reason
        self.device_failed = False
        # Submitted images have a thread of their own, and sessions are for one thread at a time.
        self._lock = threading.Lock()
        self._sampling: Sampling | None = None
        self._limit_s = limit_s
        try:
            self.scorer = self._within_limit(self._open)
        except DeviceError as err:
            if not may_be_away or not backend_row(self.options.backend).remote:
                raise
            self.scorer, self.device_failed = _NoScorer(str(err)), True

    def _within_limit(self, work: Callable[[], Scorer]) -> Scorer:
        return within(self._limit_s, work, lambda scorer: scorer.close(), str(self._bundle.path))

    def _open(self) -> Scorer:
        """Return a scorer that reproduces the golden scores; of the CPU if it may be and no other works."""
        choice, measured = self._choice, None
        if choice.rivals:
            choice, measured = self._settled()
        self.options, self.reason = replace(self.options, backend=choice.name), choice.reason
        if measured is not None:
            return measured
        try:
            scorer = open_scorer(self._bundle, self.options)
        except BackendError as err:
            # A backend that was asked for by name must not turn into another one: speed and rounding would differ.
            if not choice.may_fall_back or choice.name == REFERENCE:
                raise
            # ONNX Runtime can list CUDA and still fail to start it (cuDNN missing, for one). `path` is passed on as it
            # was asked for and not as it was resolved: `auto` is `graph` on CUDA, but `kernel` on the CPU.
            self.reason = f"auto: {err}"
            self.options = replace(self.options, backend=REFERENCE)
            scorer = open_scorer(self._bundle, self.options)
        # Not part of the fall-back: a device that computes wrong scores must be noticed, also under `auto`.
        try:
            check_golden(self._bundle, scorer, self.options)
        except BaseException:  # KeyboardInterrupt too: device memory must not stay behind
            scorer.close()
            raise
        return scorer

    def _settled(self) -> tuple[Choice, Scorer | None]:
        from flawscope.runtime.faster_backend import settle  # most bundles are loaded without a measurement

        choice = self._choice
        try:
            settled = settle(self._bundle, self.options, choice)
        except BackendError as err:
            # The one that thresholds were set on is not there, or does not start; where the other has passed its gate.
            if not choice.may_fall_back or choice.name == REFERENCE:
                raise
            return Choice(REFERENCE, f"auto: {choice.why_rivals}; {REFERENCE} takes its place: {err}"), None
        return settled.choice, settled.scorer

    def score(self, prepared: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores as `Inspector.infer`, which says what happens after a failure.

        Threads take turns, except on a backend whose row says that its sessions take several requests at once.

        Raises:
            BundleError: If a reopened device computes something else, or maps or scores do not have the shape and type
                that the bundle promises.
            DeviceError: If the device fails.
        """
        with self._lock:
            if self.device_failed:
                # After everything that can raise: the next call must try again.
                self.scorer, self.device_failed = self._within_limit(self._open_again), False
            scorer = self.scorer
            if not backend_row(self.options.backend).concurrent:
                return self._score_by(scorer, prepared)
        return self._score_by(scorer, prepared)

    def _score_by(self, scorer: Scorer, prepared: UInt8Array) -> tuple[Float32Array, Float32Array]:
        try:
            maps, scores = scorer.score(prepared)
        except DeviceError:
            # The batch is not tried again: one that makes the device fail (out of memory) would do so for ever.
            # Unless another thread has opened it anew meanwhile: that one has not failed.
            if self.scorer is scorer:
                self.device_failed = True
            scorer.close()
            raise
        check_outputs(maps, scores, len(prepared), self._bundle.manifest.input.size)
        return maps, scores

    def _open_again(self) -> Scorer:
        scorer = open_scorer(self._bundle, self.options)
        try:
            check_golden(self._bundle, scorer, self.options)  # before another sampling, which has other scores
            if self._sampling is not None and scorer.reconstructor is not None:
                scorer.reconstructor.resample(self._sampling)  # a new scorer has that of the manifest
        except BaseException:
            scorer.close()
            raise
        return scorer

    def resample(self, sampling: Sampling) -> None:
        """Use another sampling from now on, after the device failed too; for a scorer that reconstructs."""
        assert self.scorer.reconstructor is not None
        self.scorer.reconstructor.resample(sampling)
        self._sampling = sampling

    def close(self) -> None:
        """Release the device."""
        self.scorer.close()


class _NoScorer:
    """Stands where a server has not been reached yet."""

    path = "graph"
    least_score = 0.0
    reconstructor: Reconstructor | None = None

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def score(self, images: UInt8Array) -> tuple[Float32Array, Float32Array]:
        """Fail."""
        raise DeviceError(self.reason)

    def outputs(self, images: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        """Fail."""
        raise DeviceError(self.reason)

    def parts(self, images: UInt8Array) -> list[Part]:
        """Fail."""
        raise DeviceError(self.reason)

    def describe(self) -> str:
        """Say why it is not there."""
        return self.reason

    def close(self) -> None:
        """Nothing is open."""
