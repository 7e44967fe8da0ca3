"""Which implementation runs: what is found, what the environment asks for, and what is said where it is not there."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from kernel_cases import assert_same, integers

from flawscope import cpp_ext
from flawscope.cpp_ext import native, reference
from flawscope.errors import ArgumentError, BackendError

needs_native = pytest.mark.skipif(not native.HAVE_NATIVE, reason=f"no native kernels: {native.MISSING_BECAUSE}")
LEVELS = {"avx512amx", "avx512vnni", "avx512", "avx2", "neon", "scalar"}

# Every kernel once on integers, as one number each.
RESULTS = """
import numpy as np
from flawscope import cpp_ext
draw = np.random.default_rng(0).integers
rows, queries = (draw(-4, 5, (n, 9)).astype(np.float32) for n in (200, 30))
mean, whitening, features = (draw(-4, 5, shape).astype(np.float32) for shape in ((5, 9), (5, 9, 9), (3, 5, 9)))
distances, indices = cpp_ext.nearest(queries, rows, 5)
print(cpp_ext.HAVE_NATIVE, cpp_ext.simd_level())
print(cpp_ext.implementation())
print([
    int(part.astype(np.int64).ravel() @ np.arange(1, part.size + 1))
    for part in (
        distances,
        indices,
        *cpp_ext.Bank(rows, "float16").nearest(queries, 5),
        cpp_ext.kcenter_greedy(rows, 60, 0),
        cpp_ext.mahalanobis(features, mean, whitening),
    )
])
"""


def run(code, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in ("FLAWSCOPE_SIMD", "FLAWSCOPE_NATIVE")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def numpy_run():
    done = run(RESULTS, FLAWSCOPE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_native_kernels_numpy_runs_and_says_why(numpy_run):
    found, implementation, _ = numpy_run
    assert found == "False none"
    assert implementation == "reference (NumPy): native kernels switched off by FLAWSCOPE_NATIVE=0"


@needs_native
@pytest.mark.parametrize("level", native.MODULE.simd_levels() if native.HAVE_NATIVE else ["native"])
def test_the_environment_forces_a_level(level, numpy_run):
    done = run(RESULTS, FLAWSCOPE_SIMD=level)
    assert done.returncode == 0, done.stderr
    found, implementation, results = done.stdout.splitlines()
    assert found == f"True {level}"
    assert implementation == f"native ({level})"
    assert results == numpy_run[2]  # on integers all are equal


@needs_native
@pytest.mark.parametrize("variables", [{}, {"FLAWSCOPE_SIMD": ""}, {"FLAWSCOPE_NATIVE": "1"}])
def test_unasked_the_best_level_runs(variables):
    done = run("from flawscope import cpp_ext; print(cpp_ext.simd_level())", **variables)
    assert done.stdout.split() == [native.MODULE.simd_levels()[0]], done.stderr


# The first by name, not any: the order of a set changes from process to process, and with it the name of the test.
MISSING = min(LEVELS - set(native.MODULE.simd_levels())) if native.HAVE_NATIVE else "neon"


@needs_native
@pytest.mark.parametrize("level", [MISSING, "nonsense", "AVX2", "scalar "])
def test_a_level_that_is_not_there_is_refused_by_every_function(level):
    done = run(
        """
import numpy as np
from flawscope import cpp_ext
from flawscope.errors import ArgumentError
rows = np.ones((4, 3), np.float32)
for call in (
    cpp_ext.simd_level,
    cpp_ext.implementation,
    lambda: cpp_ext.nearest(rows, rows, 1),
    lambda: cpp_ext.Bank(rows),
    lambda: cpp_ext.kcenter_greedy(rows, 2, 0),
    lambda: cpp_ext.Gaussians(rows, np.ones((4, 3, 3), np.float32)),
):
    try:
        call()
    except ArgumentError as err:
        print(err)
    else:
        print("took another level in silence")
""",
        FLAWSCOPE_SIMD=level,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("FLAWSCOPE_SIMD: expected a level that this processor has")
        assert repr(level) in line or f'"{level}"' in line or f"got {level}." in line


@needs_native
@pytest.mark.skipif("FLAWSCOPE_SANITIZED" in os.environ, reason="doctor loads libraries that AddressSanitizer refuses")
@pytest.mark.parametrize("variables", [{"FLAWSCOPE_SIMD": "nonsense"}, {"FLAWSCOPE_NATIVE": "2"}])
def test_doctor_shows_a_wrong_variable_without_a_traceback(variables):
    done = run("from flawscope.cli import main; main(['doctor'])", **variables)
    assert next(iter(variables)) in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["2", "yes", "true", ""])
def test_another_value_than_0_or_1_is_refused(monkeypatch, value):
    monkeypatch.setenv("FLAWSCOPE_NATIVE", value)
    with pytest.raises(ArgumentError, match=f"FLAWSCOPE_NATIVE: expected 0 or 1, got '{value}'"):
        native._load()


def test_what_was_not_built_is_said_to_be_missing(monkeypatch):
    monkeypatch.delenv("FLAWSCOPE_NATIVE", raising=False)
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    module, reason = native._load()
    assert module is None
    assert "not built into this installation" in reason


def test_what_was_built_but_does_not_load_is_an_error(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: x")

    monkeypatch.delenv("FLAWSCOPE_NATIVE", raising=False)
    monkeypatch.setattr(native, "find_spec", lambda name: object())
    monkeypatch.setattr(native.importlib, "import_module", broken)
    with pytest.raises(BackendError, match="native kernels: expected a module that loads, got: undefined symbol: x"):
        native._load()


@needs_native
def test_the_levels_are_known_ones_and_scalar_is_always_the_last():
    levels = native.MODULE.simd_levels()
    assert set(levels) <= LEVELS
    assert levels[-1] == "scalar"
    assert len(set(levels)) == len(levels)


def test_the_level_is_set_and_put_back(compiled):
    before = cpp_ext.simd_level()
    with compiled.active():
        assert cpp_ext.simd_level() == compiled.name
        assert cpp_ext.implementation() == f"native ({compiled.name})"
    assert cpp_ext.simd_level() == before


@needs_native
@pytest.mark.parametrize("level", [MISSING, "nonsense", ""])
def test_an_unknown_level_cannot_be_set(level):
    before = cpp_ext.simd_level()
    with pytest.raises(ArgumentError, match="level"):
        native.MODULE.set_simd_level(level)
    assert cpp_ext.simd_level() == before


def test_the_reference_is_what_runs_where_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(native, "HAVE_NATIVE", False)
    monkeypatch.setattr(native, "MODULE", None)  # nothing of it may be asked
    queries, rows = integers(7, 5), integers(30, 5, seed=1)
    assert cpp_ext.simd_level() == "none"
    assert_same(cpp_ext.nearest(queries, rows, 3), reference.nearest(queries, rows, 3))
    assert_same(cpp_ext.Bank(rows).nearest(queries, 3), reference.nearest(queries, rows, 3))
    assert_same(cpp_ext.kcenter_greedy(rows, 9, 0), reference.kcenter_greedy(rows, 9, 0))
    gaussians = np.zeros((1, 5), np.float32), np.eye(5, dtype=np.float32)[None]
    assert_same(cpp_ext.mahalanobis(rows[:, None], *gaussians)[:, 0], (rows**2).sum(axis=1))
