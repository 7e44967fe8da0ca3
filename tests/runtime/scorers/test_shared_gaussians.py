"""Tables of PaDiM that processes have in common: one file, mapped by all, and refused where it is another."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flawscope.bundle import PadimHead
from flawscope.cpp_ext import HAVE_NATIVE, Bank, Gaussians, native
from flawscope.runtime.scorers import padim_scorer
from flawscope.runtime.scorers.bank_scorer import packed_gaussians, share_banks
from flawscope.triangles import unpack_triangles

pytestmark = [
    pytest.mark.skipif(not HAVE_NATIVE, reason=f"no native kernels: {native.MISSING_BECAUSE}"),
    pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc that tells what a process maps"),
]

POSITIONS, CHANNELS = 12, 9
HEAD = PadimHead(grid=(3, 4), sigma=1.0)
Tables = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "shared"
    place.mkdir()
    share_banks(place)
    yield place
    share_banks(None)


def tables(seed: int = 0, dtype: Any = np.float16) -> Tables:
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(POSITIONS, CHANNELS * (CHANNELS + 1) // 2))
    return rng.normal(size=(POSITIONS, CHANNELS)).astype(np.float32), factors.astype(dtype)


def patches(count: int = 5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(9).normal(size=(count, POSITIONS, CHANNELS)).astype(np.float32)


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def maps_of(path: Path) -> int:
    """How often this process maps the file that lies at a path now."""
    lines = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    return sum(1 for words in lines if words[-1] == str(path) and words[4] == str(path.stat().st_ino))


def assert_own_distances(gaussians: Gaussians, given: Tables) -> None:
    wanted = Gaussians.of_triangles(*given).mahalanobis(patches())
    np.testing.assert_array_equal(gaussians.mahalanobis(patches()), wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_second_maps_what_the_first_has_written(folder: Path, dtype: Any) -> None:
    given = tables(dtype=dtype)
    first = packed_gaussians(*given)
    before = the_file(folder).stat()
    assert stat.S_IMODE(before.st_mode) == 0o600
    assert maps_of(the_file(folder)) == 1
    second = packed_gaussians(*(array.copy() for array in given))
    after = the_file(folder).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert maps_of(the_file(folder)) == 2
    for gaussians in (first, second):
        assert_own_distances(gaussians, given)


def test_without_a_folder_nothing_is_written(folder: Path) -> None:
    share_banks(None)
    assert_own_distances(packed_gaussians(*tables()), tables())
    assert list(folder.iterdir()) == []


def test_other_tables_and_other_levels_have_files_of_their_own(folder: Path) -> None:
    levels, level = list(native.MODULE.simd_levels()), native.MODULE.simd_level()
    mean, triangles = tables()
    # The last two have equal bytes, one after the other.
    others = [tables(), tables(seed=1), (mean[:6], triangles[:6]), (mean[:6].reshape(9, 6), triangles[:9, :21].copy())]
    try:
        for name in levels:
            native.MODULE.set_simd_level(name)
            for given in others:
                assert packed_gaussians(*given).shape == given[0].shape
    finally:
        native.MODULE.set_simd_level(level)
    assert len(list(folder.iterdir())) == len(others) * len(levels)


def _flip(data: bytes) -> bytes:
    place = 4096 + 4 * POSITIONS * CHANNELS + 100
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "harm",
    [
        _flip,
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: Gaussians.block_of(*tables(seed=5)).tobytes(),
        lambda data: Bank(tables()[0]).to_block().tobytes(),
    ],
    ids=["a bit", "cut off", "empty", "zeros", "other tables", "a bank"],
)
def test_what_is_damaged_or_foreign_is_refused_and_written_anew(
    folder: Path, harm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = tables()
    packed_gaussians(*given)
    path = the_file(folder)
    good = path.read_bytes()
    path.unlink()  # the first one still maps the file: it must not change under it
    path.write_bytes(harm(good))
    with caplog.at_level(logging.WARNING):
        gaussians = packed_gaussians(*given)
    assert "packed anew" in caplog.text
    assert maps_of(path) == 1
    assert_own_distances(gaussians, given)
    assert the_file(folder).read_bytes() == good


def test_a_name_that_leads_to_another_file_afterwards_changes_nothing(folder: Path) -> None:
    given = tables()
    gaussians = packed_gaussians(*given)
    path = the_file(folder)
    other = path.with_name("other")
    other.write_bytes(Gaussians.block_of(*tables(seed=1)).tobytes())
    other.replace(path)
    assert_own_distances(gaussians, given)


def test_where_nothing_can_be_written_they_are_its_own_and_a_line_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.rmdir()
    folder.write_bytes(b"")
    gaussians = packed_gaussians(*tables())
    assert "takes more memory" in caplog.text
    assert_own_distances(gaussians, tables())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_head_has_the_bits_that_it_has_without_sharing(folder: Path, dtype: Any) -> None:
    mean, triangles = tables(dtype=dtype)
    tensors = {"mean": mean, "triangles": triangles}
    head = padim_scorer.native_head(HEAD, tensors, (12, 16))
    assert maps_of(the_file(folder)) == 1
    shared = head(patches())
    share_banks(None)
    own = padim_scorer.native_head(HEAD, tensors, (12, 16))(patches())
    for one, other in zip(shared, own, strict=True):
        np.testing.assert_array_equal(one, other)


def test_whole_matrices_of_old_bundles_are_not_shared_and_a_line_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mean, triangles = tables(dtype=np.float32)
    tensors = {"mean": mean, "whitening": unpack_triangles(triangles, CHANNELS)}
    old = padim_scorer.native_head(HEAD, tensors, (12, 16))(patches())
    assert "from before triangles were stored" in caplog.text
    assert "takes more memory" in caplog.text
    assert list(folder.iterdir()) == []
    caplog.clear()
    share_banks(None)
    alone = padim_scorer.native_head(HEAD, tensors, (12, 16))(patches())
    assert caplog.text == ""
    for one, other in zip(old, alone, strict=True):
        np.testing.assert_array_equal(one, other)
