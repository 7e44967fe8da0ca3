"""The implementations of the kernels that this machine has, each behind the same public functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flawscope import cpp_ext
from flawscope.cpp_ext import native

if native.HAVE_NATIVE:
    COMPILED = list(native.MODULE.simd_levels())
else:
    COMPILED = [
        pytest.param(
            "native", marks=pytest.mark.skip(reason=f"no native kernels: {native.MISSING_BECAUSE}"), id="native"
        )
    ]


class Kernels:
    """The public functions, run by one implementation: `reference` or a SIMD level.

    The level is set around every call and put back after it, so that it cannot leak into another test.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def active(self) -> Iterator[None]:
        if self.name == "reference":
            before, native.HAVE_NATIVE = native.HAVE_NATIVE, False
            try:
                yield
            finally:
                native.HAVE_NATIVE = before
            return
        level = native.MODULE.simd_level()
        native.MODULE.set_simd_level(self.name)
        try:
            yield
        finally:
            native.MODULE.set_simd_level(level)

    def nearest(self, *args: Any, **kwargs: Any) -> Any:
        with self.active():
            return cpp_ext.nearest(*args, **kwargs)

    def bank(self, *args: Any, **kwargs: Any) -> cpp_ext.Bank:
        """A bank keeps the implementation that it was made by, so its own `nearest` needs no level."""
        with self.active():
            return cpp_ext.Bank(*args, **kwargs)

    def window_bank(self, *args: Any, **kwargs: Any) -> cpp_ext.WindowBank:
        """As `bank`: it keeps the implementation that it was made by."""
        with self.active():
            return cpp_ext.WindowBank(*args, **kwargs)

    def mahalanobis(self, *args: Any, **kwargs: Any) -> Any:
        with self.active():
            return cpp_ext.mahalanobis(*args, **kwargs)

    def gaussians(self, *args: Any, **kwargs: Any) -> cpp_ext.Gaussians:
        with self.active():
            return cpp_ext.Gaussians(*args, **kwargs)

    def gaussians_of_triangles(self, *args: Any, **kwargs: Any) -> cpp_ext.Gaussians:
        with self.active():
            return cpp_ext.Gaussians.of_triangles(*args, **kwargs)

    def kcenter_greedy(self, *args: Any, **kwargs: Any) -> Any:
        with self.active():
            return cpp_ext.kcenter_greedy(*args, **kwargs)


# Scope `session`: Hypothesis refuses fixtures that are made anew for every test function.
@pytest.fixture(scope="session", params=["reference", *COMPILED])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Every implementation in turn: for tests that hold for all of them."""
    return Kernels(request.param)


@pytest.fixture(scope="session", params=["reference", *COMPILED[:1]])
def face(request: pytest.FixtureRequest) -> Kernels:
    """The reference and one SIMD level: for what is checked before a level comes into play."""
    return Kernels(request.param)


@pytest.fixture(scope="session", params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> Kernels:
    """Every SIMD level in turn: for tests that compare with the reference, or of what the reference has not."""
    return Kernels(request.param)
