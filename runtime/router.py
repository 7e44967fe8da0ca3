"""Several bundles ready at once, for a line that changes products from image to image; what is equal is loaded once.

Bundles with one backbone then differ in their banks alone: see `flawscope.runtime.backends.session_pool` for what may
be shared. Nothing else is: thresholds, preprocessing, golden images and signatures are each bundle's own, and checked
for each.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, overload

from flawscope.bundle import Bundle, trusted_bundle
from flawscope.errors import ArgumentError
from flawscope.runtime.backends.session_pool import SessionPool, SessionUse
from flawscope.runtime.frame import Frame
from flawscope.runtime.image_sources import Color, Source
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Result

AnyBundle = Bundle | Path | str
"""An opened bundle, which the router then owns and closes, or the path of one."""


class _Entry:
    """One bundle: its inspector, and the lock of whoever inspects with it."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        self.lock = threading.Lock()
        self.is_removed = False


class Router:
    """Inspectors of several bundles by name, which share the sessions of equal graphs. Close it, or use it in `with`.

    Several threads may inspect at once, also with bundles that share a session; those with the same bundle take turns.

    Args:
        bundles: Name -> bundle; or bundles alone, whose names are those of their manifests.
        backend: As in `Inspector.load`, for all bundles; so are the others.
        path: As in `Inspector.load`.
        precision: As in `Inspector.load`.
        strict: As in `Inspector.load`.
        timeout_s: As in `Inspector.load`, for each bundle.
        trusted_keys: As in `Inspector.load`.
        use_overlay: As in `Inspector.load`.
        threads: As in `Inspector.load`.
        streams: As in `Inspector.load`.

    Raises:
        ArgumentError: If two bundles have one name; and as `Inspector.load`.
        BundleError: As `Inspector.load`. One bundle that cannot be loaded is enough: those before it are closed.
        BackendError: As `Inspector.load`.
    """

    def __init__(
        self,
        bundles: Mapping[str, AnyBundle] | Iterable[AnyBundle] = (),
        backend: str = "auto",
        path: str = "auto",
        precision: str = "fp32",
        *,
        strict: bool = False,
        timeout_s: float | None = None,
        trusted_keys: Path | str | None = None,
        use_overlay: bool = True,
        threads: int | None = None,
        streams: int | None = None,
    ) -> None:
        # A text or a bundle alone would be taken apart.
        if isinstance(bundles, str | Path | Bundle) or not isinstance(bundles, Iterable):
            raise ArgumentError(
                f"bundles: expected several bundles, got {type(bundles).__name__}. Pass a list of them."
            )
        self._load = partial(
            Inspector.load,
            backend=backend,
            path=path,
            precision=precision,
            strict=strict,
            timeout_s=timeout_s,
            trusted_keys=trusted_keys,
            use_overlay=use_overlay,
            threads=threads,
            streams=streams,
        )
        self._lock = threading.Lock()  # never held while a bundle is loaded, run or closed
        self._pool = SessionPool()
        self._entries: dict[str, _Entry] = {}
        self._loading: set[str] = set()
        self._is_closed = False
        names = list(bundles) if isinstance(bundles, Mapping) else None
        given = list(bundles.values()) if isinstance(bundles, Mapping) else list(bundles)
        try:
            for index, bundle in enumerate(given):
                if names is not None:
                    self.add(names[index], bundle)
                else:
                    opened = trusted_bundle(bundle, trusted_keys)
                    self.add(opened.manifest.name, opened)
        except BaseException:
            self.close()
            for bundle in given:
                if isinstance(bundle, Bundle):
                    bundle.close()
            raise

    def add(self, name: str, bundle: AnyBundle, *, threshold_overlay: Path | str | None = None) -> None:
        """Load a bundle and verify it as `Inspector.load` does; others may be inspected with in the meantime.

        Args:
            name: Its name here.
            bundle: The bundle; one that is refused is closed.
            threshold_overlay: As in `Inspector.load`.

        Raises:
            ArgumentError: If the name is taken, the bundle is in here already or the router was closed; and as
                `Inspector.load`.
            BundleError: As `Inspector.load`.
            BackendError: As `Inspector.load`.
        """
        if self._user_of(bundle) is not None:  # before all that would close it
            raise ArgumentError(
                f"router: expected another bundle, got that of {self._user_of(bundle)!r} again. Name its path instead."
            )
        try:
            self._reserve(name)
        except ArgumentError:
            if isinstance(bundle, Bundle):
                bundle.close()
            raise
        try:
            inspector = self._load(
                bundle, threshold_overlay=threshold_overlay, open_session=partial(self._pool.open, name)
            )
            with self._lock:
                is_late = self._is_closed
                if not is_late:
                    self._entries[name] = _Entry(inspector)
            if is_late:  # closed while it was loaded
                inspector.close()
                self._check_open()
        finally:
            with self._lock:
                self._loading.discard(name)

    def _user_of(self, bundle: AnyBundle) -> str | None:
        with self._lock:
            return next((name for name, entry in self._entries.items() if entry.inspector.bundle is bundle), None)

    def _reserve(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ArgumentError(f"router: expected a text as the name of a bundle, got {name!r}.")
        with self._lock:
            self._check_open()
            if name in self._entries or name in self._loading:
                raise ArgumentError(
                    f"router: expected a name for each bundle, got {name!r} twice. Give them names: "
                    "Router({NAME: BUNDLE}) or add(NAME, BUNDLE)."
                )
            self._loading.add(name)

    def remove(self, name: str) -> None:
        """Close a bundle, after the image that is being inspected with it. What others share stays open.

        Raises:
            ArgumentError: If there is none of this name, or the router was closed.
        """
        with self._lock:
            entry = self._entry(name)
            del self._entries[name]
        _close(entry)

    @overload
    def inspect(
        self, image: Source | Frame, name: str, *, color: Color = "rgb", product: str | None = None
    ) -> Result: ...

    @overload
    def inspect(
        self,
        image: list[Any] | tuple[Source | Frame, ...],
        name: str,
        *,
        color: Color = "rgb",
        product: str | None = None,
    ) -> list[Result]: ...

    def inspect(
        self,
        image: Source | Frame | list[Any] | tuple[Source | Frame, ...],
        name: str,
        *,
        color: Color = "rgb",
        product: str | None = None,
    ) -> Result | list[Result]:
        """Inspect one image, or several, with a bundle; as calling its inspector does.

        Raises:
            ArgumentError: If there is no bundle of this name, it was closed, or `color` or `product` is unknown.
        """
        while True:
            with self._lock:
                entry = self._entry(name)
            with entry.lock:
                # It may have been removed while this waited, and another one added in its name.
                if not entry.is_removed:
                    return entry.inspector(image, color=color, product=product)

    def inspector(self, name: str) -> Inspector:
        """Return the inspector of a bundle, for streams, figures and thresholds; `remove` and `close` close it.

        It is for one thread at a time, and does not take turns with `inspect`.

        Raises:
            ArgumentError: If there is no bundle of this name, or the router was closed.
        """
        with self._lock:
            return self._entry(name).inspector

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bundles, in the order in which they were added."""
        with self._lock:
            return tuple(self._entries)

    @property
    def sharing(self) -> tuple[SessionUse, ...]:
        """All open sessions: which bundles share each, or why one has it alone."""
        return self._pool.uses()

    def _entry(self, name: str) -> _Entry:
        """Return an entry; the caller holds the lock."""
        self._check_open()
        # Not a text where image and name were exchanged: an array or a list is no key to look for.
        if not isinstance(name, str) or name not in self._entries:
            has = ", ".join(map(repr, sorted(self._entries))) or "none"
            what = repr(name) if isinstance(name, str) else type(name).__name__
            raise ArgumentError(f"router: expected the name of one of its bundles ({has}), got {what}.")
        return self._entries[name]

    def _check_open(self) -> None:
        if self._is_closed:
            raise ArgumentError("router: expected one that is open, got one that was closed. Make a new one.")

    def close(self) -> None:
        """Close all bundles, each after the image that is being inspected with it. Closing twice is harmless."""
        with self._lock:
            self._is_closed = True
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            _close(entry)

    def __enter__(self) -> Router:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(entry: _Entry) -> None:
    with entry.lock:
        entry.is_removed = True
        entry.inspector.close()
